"""A validation report for the eye: verdict, numbers, one bar for each layer, the worst tensors, every gate."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence

from .bootstrap import Interval
from .drift import Drift, Flips
from .layers import LayerDrift
from .report import CandidateResult, Generation, NoiseFloor, ValidationReport
from .weights import TensorDrift
from .wording import as_change, size

WIDTH = 100
COLUMNS = (10, 11, 8, 9, 13)  # of a tensor's numbers
NAME = WIDTH - sum(COLUMNS)
BARS = " ▁▂▃▄▅▆▇█"  # from equal to unrelated


def render(report: ValidationReport) -> str:
    """The report as text; lines of at most 100 columns."""
    asked = report.evaluation
    head = [
        f"{report.verdict.upper()}  protocol {asked.protocol.name}, n_ctx {asked.protocol.n_ctx}, "
        f"{asked.chunks} chunks, {asked.tokens} tokens scored, BOS {asked.protocol.bos}",
        f"reference  {report.reference.path}",
        f"           {_bits(report.reference.bits_per_weight)}perplexity {_number(report.reference.perplexity)}",
        *_noise_floor(report.noise_floor),
        *(line for note in asked.notes for line in _wrapped("note       ", note)),
    ]
    names = [text.name for text in asked.texts]
    return "\n".join([*head, *(line for found in report.candidates for line in _candidate(found, names))]) + "\n"


def _bits(bits_per_weight: float | None) -> str:
    """Nothing where it is not known."""
    return "" if bits_per_weight is None else f"{bits_per_weight:.2f} bits per weight, "


def _noise_floor(floor: NoiseFloor | None) -> list[str]:
    if floor is None:
        return []
    said = (
        f"KLD {floor.kld.mean:.6f}, top-1 the same {floor.top1_agreement.mean:.2%}: the reference itself with activations "
        f"rounded to bf16, {floor.chunks} chunks"
    )
    return _wrapped("noise floor ", said)


def _candidate(found: CandidateResult, texts: list[str]) -> list[str]:
    lines = ["", f"{found.verdict.upper()}  {found.path}", f"  {found.bits_per_weight:.2f} bits per weight"]
    for name, drift in zip(texts, found.drifts, strict=False):
        if len(texts) > 1:
            lines.append(f"  on {name}")
        lines += _drift(drift)
    if found.layers:
        lines += _layers(found.layers)
    if found.worst_tensors:
        lines.append(_row("  worst tensors", "type", "rel. error", "SQNR dB", "cosine", "at 8 bits"))
        lines += [_tensor(tensor) for tensor in found.worst_tensors]
    lines += ["  gates"]
    for gate in found.gates:
        of = f"{gate.text}: " if gate.text else ""
        lines += _wrapped(f"    {'pass' if gate.passed else 'FAIL'}  {gate.name:<15}", of + gate.reason)
    return lines + _generations(found.generations)


def _drift(drift: Drift) -> list[str]:
    kld, shift = drift.kld, drift.target_shift
    change = as_change(drift.delta_ln_ppl)
    return [
        f"  perplexity      {_number(drift.perplexity)}   change {change.mean:+.3%}{_range(change, '+.3%')}",
        f"  ln PPL change   {drift.delta_ln_ppl.mean:+.6f}{_range(drift.delta_ln_ppl, '+.6f')}",
        f"  top-1 the same  {drift.top1_agreement.mean:.2%}{_range(drift.top1_agreement, '.2%')}",
        f"  top-5 the same  {drift.top5_agreement.mean:.2%}{_range(drift.top5_agreement, '.2%')}",
        f"  KLD mean        {kld.mean.mean:.6f}{_range(kld.mean, '.6f')}   reverse {drift.reverse_kld.mean.mean:.6f}",
        f"  KLD             median {kld.median:.6f}   90% {kld.p90:.6f}   95% {kld.p95:.6f}   99% {kld.p99:.6f}",
        f"                  99.9% {kld.p999:.6f}   max {kld.max:.6f}",
        f"  dp of the token mean {shift.mean:+.3%}   rms {shift.rms:.3%}   1% {shift.p1:+.3%}   99% {shift.p99:+.3%}",
        *_flips(drift.flips),
    ]


def _flips(flips: Flips) -> list[str]:
    bands = "   ".join(
        f"{band.low:.0%}-{band.high:.0%} {band.flips / band.tokens:.2%}" for band in flips.bands if band.tokens
    )
    return [
        f"  flips           {flips.changed} of {flips.tokens}: {flips.right_to_wrong} right to wrong, "
        f"{flips.wrong_to_right} wrong to right",
        f"  by confidence   {bands}",
    ]


def _range(interval: Interval, form: str) -> str:
    if interval.low is None or interval.high is None:
        return "   (no interval from one chunk)"
    return f"   95% [{interval.low:{form}}, {interval.high:{form}}]"


def _layers(layers: tuple[LayerDrift, ...]) -> list[str]:
    worst = min(range(len(layers)), key=lambda index: layers[index].accumulated.cosine)
    bars = "".join(_bar(layer.accumulated.cosine) for layer in layers)
    rows = textwrap.wrap(f"|{bars}|", WIDTH - 20, drop_whitespace=False)
    said = (
        f"lowest {layers[worst].accumulated.cosine:.6f} after layer {worst}, last {layers[-1].accumulated.cosine:.6f}"
    )
    lines = [
        f"  layer cosine    {rows[0]}",
        *(f"                  {row}" for row in rows[1:]),
        f"                  {said}  (away by ▁ 1e-8 ▄ 1e-5 █ 0.1)",
        f"  layer error     {_largest([layer.accumulated.relative_error for layer in layers])}, accumulated",
    ]
    isolated = [layer.isolated.relative_error for layer in layers if layer.isolated is not None]
    if isolated:
        lines.append(f"                  {_largest(isolated)}, on the reference's own input")
    alone = [layer.kld_alone for layer in layers if layer.kld_alone is not None]
    if alone:
        lines.append(f"  KLD alone       {_largest(alone)}: what that layer costs by itself")
    return lines


def _largest(values: Sequence[float]) -> str:
    layer = max(range(len(values)), key=values.__getitem__)
    return f"largest {values[layer]:.3g} in layer {layer}, median {statistics.median(values):.3g}"


def _bar(cosine: float) -> str:
    """One decade of 1 - cosine for each step of the bar: blank below 1e-8, full from 0.1 on."""
    away = 1 - cosine
    return BARS[0] if away < 1e-8 else BARS[min(8, max(1, 9 + math.floor(math.log10(away))))]


def _tensor(tensor: TensorDrift) -> str:
    dtype = tensor.dtype if len(tensor.dtype) < COLUMNS[0] else f"{tensor.dtype[: COLUMNS[0] - 2]}…"
    if tensor.n_nonfinite:
        return _row(f"    {tensor.name}", dtype, "NaN or inf", str(tensor.n_nonfinite), "-", "-")
    sqnr = "-" if tensor.sqnr_db is None else f"{tensor.sqnr_db:.1f}"
    price = f"+{size(tensor.extra_bytes_at_8_bits)}" if tensor.extra_bytes_at_8_bits else "-"
    cosine = f"{tensor.cosine:.5f}"
    return _row(f"    {tensor.name}", dtype, f"{tensor.relative_error:.3g}", sqnr, cosine, price)


def _row(name: str, *values: str) -> str:
    """A name that is too long for its column keeps its end, which says which tensor it is."""
    if len(name) > NAME:
        name = "    …" + name[len(name) - NAME + 5 :]
    return f"{name:<{NAME}}" + "".join(f"{value:>{width}}" for value, width in zip(values, COLUMNS, strict=True))


def _generations(generations: Sequence[Generation]) -> list[str]:
    """How many tokens of each continuation are the reference's."""
    if not generations:
        return []
    said = ", ".join(
        f"{it.name} {len(it.reference) if it.first_divergence is None else it.first_divergence}/{len(it.reference)}"
        for it in generations
    )
    return _wrapped("  writes the same ", f"{said} tokens before the first that differs")


def _wrapped(start: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
