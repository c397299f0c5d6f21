"""The measurements themselves: perplexity of one model, and candidates against a reference.

    tokens -> weights against weights, slab by slab -> every model's layers in step -> head in slices -> gates -> report

A candidate that cannot be run (a tensor is missing, misshapen, or not finite) fails without being run; a reference that
cannot is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..convert.model import Model
from ..convert.progress import Progress, silent
from ..convert.tokenizer import Tokenizer
from ..errors import InputError, NonFiniteError, UsageError
from .bootstrap import interval
from .drift import Drift, LayerCosine, TokenScores, drift, perplexity
from .gates import Gate, default_limits, drift_gates, finite_gate, tensors_gate, tokenizer_gate
from .head import score
from .options import ValidateOptions
from .protocols import Protocol, Window, encode, protocol, text_digest, token_digest, windows
from .report import CandidateResult, Evaluation, PerplexityResult, Reference, ValidationReport
from .stream import Stream, run_layers
from .weights import WeightsDrift, compare_weights, same_dtype

FEW_CHUNKS = 8


@dataclass(frozen=True)
class Subject:
    """A model and the name that it has in the report."""

    path: str
    model: Model


def measure_perplexity(
    subject: Subject, text: str, options: ValidateOptions | None = None, progress: Progress = silent
) -> PerplexityResult:
    """Perplexity of `text`. NonFiniteError where a weight or an activation is not finite; InputError for too short a text."""
    options = options or ValidateOptions()
    _, cut, asked = _question(subject, text, options)
    streams = [Stream(subject.path, subject.model, [window.tokens for window in cut])]
    run_layers(streams, _Layers(streams), progress)
    scores = score(streams, [window.scored for window in cut], options.slice_rows, progress)[0]
    _refuse_broken_logits(subject, scores)
    nll = interval([window.nll for window in scores], options.resamples, options.seed)
    return PerplexityResult(subject.path, asked, nll)


def validate(
    reference: Subject,
    candidates: Sequence[Subject],
    text: str,
    options: ValidateOptions | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """How far each candidate is from the reference on `text`, and whether that is within its limits.

    The reference's layers run once, whatever the number of candidates. InputError where the reference cannot be run or the
    text is too short; a damaged candidate is no error but a failed gate that names the damage.
    """
    options = options or ValidateOptions()
    if not candidates:
        raise UsageError("nothing to validate: name at least one candidate")
    ids, cut, asked = _question(reference, text, options)
    weights = compare_weights(reference.model, [c.model for c in candidates], options.threads, progress)
    runnable = [index for index, drift_ in enumerate(weights) if drift_.is_runnable]
    measured = _measure(reference, [candidates[index] for index in runnable], cut, options, progress)
    by_index = dict(zip(runnable, measured.candidates, strict=True))
    results = tuple(
        _result(reference, candidate, ids, text, weights[index], by_index.get(index), options)
        for index, candidate in enumerate(candidates)
    )
    model = reference.model
    held = Reference(reference.path, model.bits_per_weight, model.parameters, measured.perplexity)
    return ValidationReport(asked, held, results)


def _question(subject: Subject, text: str, options: ValidateOptions) -> tuple[list[int], list[Window], Evaluation]:
    """(ids of the whole text, windows to run, what to say of them)."""
    how = protocol(options.protocol, options.n_ctx)
    _check_context(subject, how)
    tokenizer = _tokenizer(subject)
    ids = encode(tokenizer, text)
    cut = windows(ids, tokenizer, how, options.chunks)
    notes = []
    if len(cut) == 1:
        notes.append("one chunk gives no interval: the gates judge the measured values themselves; give a longer text")
    elif len(cut) < FEW_CHUNKS:
        notes.append(f"{len(cut)} chunks: intervals from fewer than {FEW_CHUNKS} are too narrow; give a longer text")
    scored = sum(len(window.scored[1]) for window in cut)
    digests = (text_digest(text), token_digest(cut))
    return ids, cut, Evaluation(how, len(cut), scored, *digests, options.seed, options.resamples, tuple(notes))


def _tokenizer(subject: Subject) -> Tokenizer:
    if subject.model.tokenizer is None:
        raise InputError(f"{subject.path}: has no tokenizer, so a text cannot be scored; give one with --tokenizer")
    return subject.model.tokenizer


def _check_context(subject: Subject, how: Protocol) -> None:
    trained = subject.model.config.get("max_position_embeddings")
    if isinstance(trained, int) and how.n_ctx > trained:
        raise UsageError(
            f"{subject.path}: protocol {how.name} wants windows of {how.n_ctx} tokens, the model was trained on {trained}: "
            f"give --ctx {trained} or fewer"
        )


class _Layers:
    """Watches the streams: cosine of each candidate's layer outputs with the reference's, and the first that breaks."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
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
        if index:
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
    """A candidate's forward pass: no drift where it broke off, and then what broke it."""

    drift: Drift | None
    layers: tuple[LayerCosine, ...]
    broken: str | None


@dataclass(frozen=True)
class _Measured:
    perplexity: float | None
    candidates: list[_Run]


def _measure(
    reference: Subject, candidates: Sequence[Subject], cut: list[Window], options: ValidateOptions, progress: Progress
) -> _Measured:
    if not candidates:
        return _Measured(None, [])
    tokens = [window.tokens for window in cut]
    streams = [Stream(subject.path, subject.model, tokens) for subject in (reference, *candidates)]
    watched = _Layers(streams)
    run_layers(streams, watched, progress)
    whole = [index for index in range(len(streams)) if index not in watched.broken]
    found = score([streams[i] for i in whole], [w.scored for w in cut], options.slice_rows, progress)
    scores = dict(zip(whole, found, strict=True))
    _refuse_broken_logits(reference, scores[0])
    runs = []
    for index in range(1, len(streams)):
        broken, apart = watched.broken.get(index), None
        if index in scores and not all(window.is_finite for window in scores[index]):
            broken = "the output head gives NaN or infinity"
        elif index in scores:
            apart = drift(scores[0], scores[index], options.resamples, options.seed)
        runs.append(_Run(apart, tuple(watched.cosines[index]), broken))
    return _Measured(perplexity(scores[0]), runs)


def _refuse_broken_logits(subject: Subject, scores: list[TokenScores]) -> None:
    if not all(window.is_finite for window in scores):
        raise NonFiniteError(f"{subject.path}: the output head gives NaN or infinity, though every weight is finite")


def _result(
    reference: Subject,
    candidate: Subject,
    ids: list[int],
    text: str,
    weights: WeightsDrift,
    run: _Run | None,
    options: ValidateOptions,
) -> CandidateResult:
    model = candidate.model
    gates: list[Gate] = [finite_gate(weights, run.broken if run else None), tensors_gate(weights)]
    if model.tokenizer is not None:
        gates.append(tokenizer_gate(ids, encode(model.tokenizer, text)))
    if run is not None and run.drift is not None:
        same = same_dtype(reference.model, model)
        limits = default_limits(model.bits_per_weight, model.parameters, same).overridden_by(options.limits)
        gates += drift_gates(run.drift, limits)
    return CandidateResult(
        candidate.path,
        model.bits_per_weight,
        run.drift if run else None,
        run.layers if run else (),
        weights.tensors,
        tuple(gates),
    )
