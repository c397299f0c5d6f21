"""The measurements themselves: perplexity of one model, and candidates against a reference.

    texts -> windows -> weights against weights, slab by slab -> every model's layers in step -> head in slices -> gates

The reference runs a second time on a few windows, its activations rounded to bf16 after each layer: the noise floor. A
candidate that cannot be run (a tensor is missing, misshapen, or not finite) fails without being run; a reference that
cannot is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..convert.progress import Progress, silent
from ..errors import NonFiniteError, UsageError
from .bootstrap import interval
from .drift import Drift, LayerCosine, TokenScores, drift, perplexity
from .gates import (
    Gate,
    config_gate,
    drift_gates,
    finite_gate,
    special_tokens_gate,
    tensors_gate,
    tokenizer_gate,
)
from .head import score
from .limits import default_limits
from .options import ValidateOptions
from .protocols import encode
from .question import FEW_CHUNKS, Question, Subject, ask
from .replay import arithmetic_facts
from .report import CandidateResult, NoiseFloor, PerplexityResult, Reference, ValidationReport
from .stream import Stream, run_layers
from .texts import Text
from .weights import WeightsDrift, compare_weights, same_dtype

FLOOR_CHUNKS = FEW_CHUNKS  # windows that the noise floor is measured on: a floor, known well enough from these


def measure_perplexity(
    subject: Subject, text: Text, options: ValidateOptions | None = None, progress: Progress = silent
) -> PerplexityResult:
    """Perplexity of one text. NonFiniteError where a weight or an activation is not finite; InputError if it is too short."""
    options = options or ValidateOptions()
    asked = ask(subject, [text], options)
    streams = [Stream(subject.path, subject.model, [window.tokens for window in asked.windows])]
    run_layers(streams, _Layers(streams, 1), progress)
    scores = score(streams, [window.scored for window in asked.windows], options.slice_rows, progress)[0]
    _refuse_broken_logits(subject, scores)
    nll = interval([window.nll for window in scores], options.resamples, options.seed)
    return PerplexityResult(subject.path, asked.evaluation, nll)


def validate(
    reference: Subject,
    candidates: Sequence[Subject],
    texts: Sequence[Text],
    options: ValidateOptions | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """How far each candidate is from the reference on each text, and whether that is within its limits.

    The reference's layers run once, whatever the number of candidates. InputError where the reference cannot be run or a
    text is too short; a damaged candidate is no error but a failed gate that names the damage.
    """
    options = options or ValidateOptions()
    if not candidates:
        raise UsageError("nothing to validate: name at least one candidate")
    asked = ask(reference, texts, options)
    weights = compare_weights(reference.model, [c.model for c in candidates], options.threads, progress)
    runnable = [index for index, drift_ in enumerate(weights) if drift_.is_runnable]
    measured = _measure(reference, [candidates[index] for index in runnable], asked, options, progress)
    by_index = dict(zip(runnable, measured.candidates, strict=True))
    results = tuple(
        _result(reference, candidate, asked, weights[index], by_index.get(index), options)
        for index, candidate in enumerate(candidates)
    )
    model = reference.model
    nbytes = sum(tensor.nbytes for tensor in model.tensors.values())
    held = Reference(reference.path, model.bits_per_weight, model.parameters, nbytes, measured.perplexities)
    return ValidationReport(asked.evaluation, held, results, measured.noise_floor)


class _Layers:
    """Watches the streams: cosine of each candidate's layer outputs with the reference's, and the first that breaks.

    Of the streams after the first `n_watched` nothing is kept.
    """

    def __init__(self, streams: Sequence[Stream], n_watched: int) -> None:
        self.streams = streams
        self.n_watched = n_watched
        self.cosines: list[list[LayerCosine]] = [[] for _ in streams]
        self.broken: dict[int, str] = {}

    def __call__(self, index: int, layer: int, bad: int | None) -> bool:
        if bad is not None:
            said = f"layer {layer} of {self.streams[index].n_layers} gives NaN or infinity in chunk {bad}"
            if index == 0:
                raise NonFiniteError(
                    f"{self.streams[0].name}: {said}: its weights are finite, so they are not what they say"
                )
            self.broken[index] = said
            return False
        if 0 < index < self.n_watched:
            self.cosines[index].append(_cosine(self.streams[0], self.streams[index]))
        return True


def _cosine(reference: Stream, candidate: Stream) -> LayerCosine:
    pairs = zip(reference.states, candidate.states, strict=True)
    total, count, lowest = 0.0, 0, 1.0
    for ours, theirs in pairs:
        a, b = ours.double(), theirs.double()
        # Equal states are 1 exactly; the quotient could round to 1 - 1e-16.
        equal = (a == b).all(dim=-1)
        cosine = torch.where(equal, 1.0, torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-30))
        total, count = total + float(cosine.sum()), count + cosine.numel()
        lowest = min(lowest, float(cosine.min()))
    return LayerCosine(total / count, lowest)


@dataclass(frozen=True)
class _Run:
    """A candidate's forward pass: no drifts where it broke off, and then what broke it."""

    drifts: tuple[Drift, ...]
    layers: tuple[LayerCosine, ...]
    config: Gate
    broken: str | None


@dataclass(frozen=True)
class _Measured:
    perplexities: tuple[float, ...] = ()
    candidates: tuple[_Run, ...] = ()
    noise_floor: NoiseFloor | None = None


def _measure(
    reference: Subject, candidates: Sequence[Subject], asked: Question, options: ValidateOptions, progress: Progress
) -> _Measured:
    if not candidates:
        return _Measured()
    windows = asked.windows
    tokens = [window.tokens for window in windows]
    streams = [Stream(subject.path, subject.model, tokens) for subject in (reference, *candidates)]
    n = len(streams)
    if options.noise_floor:
        streams.append(Stream(reference.path, reference.model, tokens[:FLOOR_CHUNKS], after=_rounded))
    watched = _Layers(streams, n)
    run_layers(streams, watched, progress)
    whole = [index for index in range(n) if index not in watched.broken]
    found = score([streams[i] for i in whole], [w.scored for w in windows], options.slice_rows, progress)
    scores = dict(zip(whole, found, strict=True))
    _refuse_broken_logits(reference, scores[0])
    runs = []
    for index in range(1, n):
        broken = watched.broken.get(index)
        drifts: tuple[Drift, ...] = ()
        if index in scores and not all(window.is_finite for window in scores[index]):
            broken = "the output head gives NaN or infinity"
        elif index in scores:
            drifts = _drifts(asked, scores[0], scores[index], options)
        config = config_gate(*(arithmetic_facts(stream.replay) for stream in (streams[0], streams[index])))
        runs.append(_Run(drifts, tuple(watched.cosines[index]), config, broken))
    heard = options.noise_floor and n not in watched.broken
    floor = _noise_floor(streams[0], streams[n], asked, options) if heard else None
    return _Measured(tuple(perplexity(part) for part in asked.by_text(scores[0])), tuple(runs), floor)


def _drifts(
    asked: Question, reference: list[TokenScores], candidate: list[TokenScores], options: ValidateOptions
) -> tuple[Drift, ...]:
    """One drift for each text."""
    targets = [window.scored[1] for window in asked.windows]
    cut = zip(asked.by_text(reference), asked.by_text(candidate), asked.by_text(targets), strict=True)
    return tuple(drift(p, q, came, options.resamples, options.seed) for p, q, came in cut)


def _rounded(hidden: Tensor) -> Tensor:
    return hidden.bfloat16().float()


def _noise_floor(reference: Stream, rounded: Stream, asked: Question, options: ValidateOptions) -> NoiseFloor:
    """Both have gone through all layers; of the reference just the rounded one's windows are scored again."""
    few = copy.copy(reference)
    few.states = reference.states[: len(rounded.states)]
    windows = asked.windows[: len(rounded.states)]
    ours, theirs = score([few, rounded], [window.scored for window in windows], options.slice_rows)
    apart = drift(ours, theirs, [window.scored[1] for window in windows], options.resamples, options.seed)
    return NoiseFloor(apart.kld.mean, apart.top1_agreement, len(windows))


def _refuse_broken_logits(subject: Subject, scores: list[TokenScores]) -> None:
    if not all(window.is_finite for window in scores):
        raise NonFiniteError(f"{subject.path}: the output head gives NaN or infinity, though every weight is finite")


def _result(
    reference: Subject,
    candidate: Subject,
    asked: Question,
    weights: WeightsDrift,
    run: _Run | None,
    options: ValidateOptions,
) -> CandidateResult:
    model = candidate.model
    gates: list[Gate] = [finite_gate(weights, run.broken if run else None), tensors_gate(weights)]
    gates += _tokenizer_gates(reference, candidate, asked)
    if run is not None:
        gates.append(run.config)
        same = same_dtype(reference.model, model)
        limits = default_limits(model.bits_per_weight, model.parameters, same, options.table)
        limits = limits.overridden_by(options.limits)
        for text, apart in zip(asked.evaluation.texts, run.drifts, strict=False):
            name = text.name if len(asked.parts) > 1 else None
            gates += drift_gates(apart, limits, text.chunks, name)
    return CandidateResult(
        candidate.path,
        model.bits_per_weight,
        sum(tensor.nbytes for tensor in model.tensors.values()),
        run.drifts if run else (),
        run.layers if run else (),
        weights.tensors,
        tuple(gates),
    )


def _tokenizer_gates(reference: Subject, candidate: Subject, asked: Question) -> list[Gate]:
    """The same ids of every text, the same special tokens, where there are tokenizers to ask."""
    ours, theirs = reference.model.tokenizer, candidate.model.tokenizer
    if theirs is None:
        return []
    gates = [
        tokenizer_gate(part.ids, encode(theirs, part.text.content), part.text.name if len(asked.parts) > 1 else None)
        for part in asked.parts
        if part.text.content is not None
    ]
    return gates if ours is None else [*gates, special_tokens_gate(ours, theirs)]
