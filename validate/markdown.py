"""A validation report as Markdown, short enough for a model card: verdict, numbers with intervals, gates, how to ask again.

Everything that came from a file is escaped: a pipe would start a cell, a bracket a link, a "<" markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .bootstrap import Interval
from .drift import Drift
from .gates import Gate
from .report import CandidateResult, ValidationReport
from .wording import as_change, percent, short_names, significant, size

LISTED = 5  # tensors of each candidate
_MARKS = re.compile(r"([\\`*_\[\]<>|#~!])")


def render(report: ValidationReport, command: str | None = None) -> str:
    """The report as text. `command` is the command line that made it."""
    names = short_names([found.path for found in report.candidates])
    parts = [*_head(report), *_candidates(report, names)]
    for name, found in zip(names, report.candidates, strict=True):
        parts += [f"### {escaped(name)}: {found.verdict}", *_gates(found), *_tensors(found), *_generations(found)]
    return "\n\n".join([*parts, *_again(report, command)]) + "\n"


def escaped(text: str) -> str:
    """Text on one line that Markdown takes for text."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A code span on one line, also inside a table: fenced by more backticks than it holds, pipes escaped."""
    line = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """Columns of (title, "<" or ">") and rows of cells that are escaped already."""
    rules = ["---:" if align == ">" else "---" for _, align in columns]
    lines = [[title for title, _ in columns], rules, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _head(report: ValidationReport) -> list[str]:
    asked = report.evaluation
    protocol = asked.protocol
    texts = ", ".join(escaped(text.name) for text in asked.texts)
    found = [
        f"## Validation: {report.verdict}",
        f"Against {code(report.reference.path)} on {texts}: protocol {protocol.name}, windows of {protocol.n_ctx} tokens, "
        f"BOS {protocol.bos}, {asked.chunks} chunks, {asked.tokens:,} tokens scored. Measured with smelt; 95% intervals by "
        f"bootstrap of chunks ({asked.resamples:,} resamples, seed {asked.seed}); KL divergence in nats.",
    ]
    if report.noise_floor is not None:
        floor = report.noise_floor
        found.append(
            f"Noise floor (the reference itself, activations rounded to bf16): KLD {significant(floor.kld.mean)}, top-1 the "
            f"same {percent(floor.top1_agreement.mean)}."
        )
    return found + [f"> {escaped(note)}" for note in asked.notes]


def _candidates(report: ValidationReport, names: Sequence[str]) -> list[str]:
    found = []
    texts = report.evaluation.texts
    columns = [("model", "<"), ("verdict", "<"), ("bits per weight", ">"), ("size", ">")]
    columns += [(title, ">") for title in ("perplexity", "change", "mean KLD", "99.9% KLD", "top-1 the same")]
    for place, text in enumerate(texts):
        rows = [_reference_row(report, place)]
        rows += [_row(name, one, place) for name, one in zip(names, report.candidates, strict=True)]
        found += [*([f"On {escaped(text.name)}:"] if len(texts) > 1 else []), table(columns, rows)]
    return found


def _reference_row(report: ValidationReport, place: int) -> list[str]:
    reference = report.reference
    perplexity = reference.perplexities[place] if reference.perplexities else None
    bits = "" if reference.bits_per_weight is None else f"{reference.bits_per_weight:.2f}"
    nbytes = "" if reference.nbytes is None else size(reference.nbytes)
    return ["reference", "", bits, nbytes, significant(perplexity, 5), "", "", "", ""]


def _row(name: str, found: CandidateResult, place: int) -> list[str]:
    row = [escaped(name), found.verdict, f"{found.bits_per_weight:.2f}", size(found.nbytes)]
    return row + (_numbers(found.drifts[place]) if place < len(found.drifts) else ["not run", "", "", "", ""])


def _numbers(drift: Drift) -> list[str]:
    change = as_change(drift.delta_ln_ppl)
    return [
        significant(drift.perplexity, 5),
        _with_range(change, *(percent(v, signed=True) for v in (change.mean, change.low, change.high))),
        _with_range(drift.kld.mean, *(significant(v) for v in _ends(drift.kld.mean))),
        significant(drift.kld.p999),
        _with_range(drift.top1_agreement, *(percent(v) for v in _ends(drift.top1_agreement))),
    ]


def _ends(interval: Interval) -> tuple[float, float | None, float | None]:
    return interval.mean, interval.low, interval.high


def _with_range(interval: Interval, mean: str, low: str, high: str) -> str:
    return mean if interval.low is None else f"{mean} ({low} to {high})"


def _gates(found: CandidateResult) -> list[str]:
    rows = [
        [escaped(_gate_name(gate)), "pass" if gate.passed else "**fail**", escaped(gate.reason)] for gate in found.gates
    ]
    return [table([("gate", "<"), ("verdict", "<"), ("reason", "<")], rows)]


def _gate_name(gate: Gate) -> str:
    return f"{gate.name} on {gate.text}" if gate.text else gate.name


def _tensors(found: CandidateResult) -> list[str]:
    rows = [
        [
            code(tensor.name),
            tensor.dtype,
            f"{tensor.n_nonfinite} NaN or infinite" if tensor.n_nonfinite else significant(tensor.relative_error),
            f"+{size(tensor.extra_bytes_at_8_bits)}" if tensor.extra_bytes_at_8_bits else "",
        ]
        for tensor in found.worst_tensors[:LISTED]
    ]
    columns = [("tensors that differ most", "<"), ("type", "<"), ("relative error", ">"), ("as Q8_0", ">")]
    return [table(columns, rows)] if rows else []


def _generations(found: CandidateResult) -> list[str]:
    if not found.generations:
        return []
    told = "; ".join(
        f"{generation.name} "
        + (
            f"all {len(generation.reference)}"
            if generation.first_divergence is None
            else f"{generation.first_divergence} of {len(generation.reference)}"
        )
        for generation in found.generations
    )
    return [f"Greedy tokens before the first that differs from the reference's: {told}."]


def _again(report: ValidationReport, command: str | None) -> list[str]:
    """The command line, and the digests that tell whether it was asked of the same texts."""
    digests = []
    for text in report.evaluation.texts:
        if text.text_sha256 is not None:
            digests.append(f"{text.text_sha256}  text {text.name}")
        digests.append(f"{text.token_ids_sha256}  token ids of {text.name}")
    lines = [*([command] if command else []), *(f"# sha256 {digest}" for digest in digests)]
    return ["### To reproduce", "\n".join(f"    {line}" for each in lines for line in each.splitlines())]
