"""The forward passes of a validation: the reference, its noise floor and every candidate, layer by layer in step.

    streams   reference | candidates ... | reference rounded to bf16 (a few windows)
    layer k   each stream runs it, and is compared with the reference's output; then its weights are released
    head      all streams in slices of the vocabulary -> token scores -> drift, a text each

A candidate that breaks off is left behind with the reason; the others go on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..convert.progress import Progress
from ..errors import NonFiniteError
from .drift import Drift, TokenScores, drift, perplexity
from .gates import Gate, config_gate
from .head import score
from .layers import LayerDrift, apart
from .options import ValidateOptions
from .question import FEW_CHUNKS, Question, Subject
from .replay import arithmetic_facts
from .report import NoiseFloor
from .stream import Stream, run_layers

FLOOR_CHUNKS = FEW_CHUNKS  # windows that the noise floor is measured on: a floor, known well enough from these


class Layers:
    """Watches the streams: how far each candidate's layer outputs are from the reference's, and the first that breaks.

    Of the streams after the first `n_watched` nothing is kept.
    """

    def __init__(self, streams: Sequence[Stream], n_watched: int) -> None:
        self.streams = streams
        self.n_watched = n_watched
        self.drifts: list[list[LayerDrift]] = [[] for _ in streams]
        self.broken: dict[int, str] = {}

    def __call__(self, index: int, layer: int, bad: int | None) -> bool:
        """As `stream.Observer`; NonFiniteError where it is the reference that breaks."""
        if bad is not None:
            said = f"layer {layer} of {self.streams[index].n_layers} gives NaN or infinity in chunk {bad}"
            if index == 0:
                raise NonFiniteError(
                    f"{self.streams[0].name}: {said}: its weights are finite, so they are not what they say"
                )
            self.broken[index] = said
            return False
        if 0 < index < self.n_watched:
            self.drifts[index].append(LayerDrift(apart(self.streams[0].states, self.streams[index].states)))
        return True


@dataclass(frozen=True)
class CandidateRun:
    """A candidate's forward pass: no drifts where it broke off, and then what broke it."""

    drifts: tuple[Drift, ...]
    layers: tuple[LayerDrift, ...]
    config: Gate
    broken: str | None


@dataclass(frozen=True)
class Measured:
    """All forward passes: the reference's perplexity on each text, and the candidates in the order they were given."""

    perplexities: tuple[float, ...] = ()
    candidates: tuple[CandidateRun, ...] = ()
    noise_floor: NoiseFloor | None = None


def run_models(
    reference: Subject, candidates: Sequence[Subject], asked: Question, options: ValidateOptions, progress: Progress
) -> Measured:
    """Runs reference and candidates; every tensor must be there and finite (compare_weights says so beforehand)."""
    if not candidates:
        return Measured()
    windows = asked.windows
    tokens = [window.tokens for window in windows]
    streams = [Stream(subject.path, subject.model, tokens) for subject in (reference, *candidates)]
    n = len(streams)
    if options.noise_floor:
        streams.append(Stream(reference.path, reference.model, tokens[:FLOOR_CHUNKS], after=_rounded))
    watched = Layers(streams, n)
    run_layers(streams, watched, progress)
    whole = [index for index in range(n) if index not in watched.broken]
    found = score([streams[i] for i in whole], [w.scored for w in windows], options.slice_rows, progress)
    scores = dict(zip(whole, found, strict=True))
    refuse_broken_logits(reference, scores[0])
    runs = []
    for index in range(1, n):
        broken = watched.broken.get(index)
        drifts: tuple[Drift, ...] = ()
        if index in scores and not all(window.is_finite for window in scores[index]):
            broken = "the output head gives NaN or infinity"
        elif index in scores:
            drifts = _drifts(asked, scores[0], scores[index], options)
        config = config_gate(*(arithmetic_facts(stream.replay) for stream in (streams[0], streams[index])))
        runs.append(CandidateRun(drifts, tuple(watched.drifts[index]), config, broken))
    heard = options.noise_floor and n not in watched.broken
    floor = _noise_floor(streams[0], streams[n], asked, options) if heard else None
    return Measured(tuple(perplexity(part) for part in asked.by_text(scores[0])), tuple(runs), floor)


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
    found = drift(ours, theirs, [window.scored[1] for window in windows], options.resamples, options.seed)
    return NoiseFloor(found.kld.mean, found.top1_agreement, len(windows))


def refuse_broken_logits(subject: Subject, scores: list[TokenScores]) -> None:
    """NonFiniteError where a NaN or infinity reached the odds that `subject` gives."""
    if not all(window.is_finite for window in scores):
        raise NonFiniteError(f"{subject.path}: the output head gives NaN or infinity, though every weight is finite")
