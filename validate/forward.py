"""The forward passes of a validation: the reference, its noise floor and every candidate, layer by layer in step.

    streams   reference | candidates ... | reference rounded to bf16 (a few windows)
    layer k   each stream runs it, and is compared with the reference's output; then its weights are released
    head      all streams in slices of the vocabulary -> token scores -> drift, a text each

A candidate that breaks off is left behind with the reason; the others go on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from ..errors import NonFiniteError
from .baseline_write import Saver
from .branches import Branches
from .drift import Drift, TokenScores, drift, perplexity
from .gates import Gate, config_gate
from .head import score
from .layers import Alone, LayerDrift, apart
from .options import ValidateOptions
from .question import FEW_CHUNKS, Question, Subject
from .replay import arithmetic_facts
from .report import NoiseFloor
from .setting import Setting
from .stream import Stream, Tokens, run_layers

FLOOR_CHUNKS = FEW_CHUNKS  # windows that the noise floor is measured on: a floor, known well enough from these


@dataclass(frozen=True)
class Seen:
    """What `Layers` has seen so far."""

    drifts: list[list[LayerDrift]]
    broken: dict[int, str]
    begun: list[tuple[int, int]]


class Layers:
    """Watches the streams: how far each candidate's layer outputs are from the reference's, and the first that breaks.

    Of the streams after the first `n_watched` nothing is kept. `attribute`: measure what each layer costs by itself.
    """

    def __init__(self, streams: Sequence[Stream], n_watched: int, attribute: bool = False) -> None:
        self.streams = streams
        self.n_watched = n_watched
        self.branches = Branches(streams[:n_watched], attribute)
        self.drifts: list[list[LayerDrift]] = [[] for _ in streams]
        self.broken: dict[int, str] = {}

    def seen(self) -> Seen:
        """What a journal keeps."""
        return Seen(self.drifts, self.broken, self.branches.begun)

    def resume(self, seen: Seen) -> None:
        """Go on from there."""
        self.drifts, self.broken, self.branches.begun = seen.drifts, seen.broken, seen.begun

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
            isolated = self.branches.isolated(index, layer)
            if isolated is None:
                self.broken[index] = (
                    f"layer {layer} of {self.streams[index].n_layers} gives NaN or infinity on the reference's own input"
                )
                return False
            self.drifts[index].append(LayerDrift(apart(self.streams[0].states, self.streams[index].states), isolated))
        return True


def open_stream(
    subject: Subject, tokens: Sequence[Tokens], setting: Setting, after: Callable[[Tensor], Tensor] | None = None
) -> Stream:
    """A stream in its setting."""
    return Stream(subject.path, subject.model, tokens, after=after, keep=setting.keep, device=setting.device)


class Watcher(Protocol):
    """An observer of layers that a journal can keep."""

    broken: dict[int, str]

    def seen(self) -> Seen:
        """What a journal keeps."""

    def resume(self, seen: Seen) -> None:
        """Go on from there."""

    def __call__(self, index: int, layer: int, bad: int | None, /) -> bool:
        """As `stream.Observer`."""


def follow(streams: Sequence[Stream], watched: Watcher, setting: Setting) -> None:
    """All layers of all streams, from where the journal left off; it is told of each step."""
    journal = setting.journal
    found = journal.restore(streams, Seen)
    done = 0
    if found is not None:
        done, seen = found
        watched.resume(seen)

    def observe(index: int, layer: int, bad: int | None) -> bool:
        goes_on = watched(index, layer, bad)
        journal.save(layer * len(streams) + index + 1, streams, watched.seen)
        return goes_on

    run_layers(streams, observe, setting.parts.layers, done, watched.broken)
    journal.save(streams[0].n_layers * len(streams), streams, watched.seen, last=True)


@dataclass(frozen=True)
class CandidateRun:
    """A candidate's forward pass: no drifts where it broke off, and then what broke it.

    alone  what each part of it costs by itself; None where that was not asked for, or it broke off
    """

    drifts: tuple[Drift, ...]
    layers: tuple[LayerDrift, ...]
    config: Gate
    broken: str | None
    alone: Alone | None = None


@dataclass(frozen=True)
class Measured:
    """All forward passes: the reference's perplexity on each text, and the candidates in the order they were given."""

    perplexities: tuple[float, ...] = ()
    candidates: tuple[CandidateRun, ...] = ()
    noise_floor: NoiseFloor | None = None


def run_models(
    reference: Subject,
    candidates: Sequence[Subject],
    asked: Question,
    options: ValidateOptions,
    setting: Setting | None = None,
    save: Saver | None = None,
) -> Measured:
    """Runs reference and candidates; every tensor must be there and finite (compare_weights says so beforehand).

    `save` gets the reference after its last layer; without candidates it runs for that alone.
    """
    if not candidates and save is None:
        return Measured()
    setting = setting or Setting()
    windows = asked.windows
    tokens = [window.tokens for window in windows]
    streams = [open_stream(subject, tokens, setting) for subject in (reference, *candidates)]
    n = len(streams)
    if options.noise_floor:
        streams.append(open_stream(reference, tokens[:FLOOR_CHUNKS], setting, _rounded))
    watched = Layers(streams, n, options.attribute)
    follow(streams, watched, setting)
    whole = [index for index in range(n) if index not in watched.broken]
    found = setting.journal.recall(
        "scores",
        list[list[TokenScores]],
        lambda: score([streams[i] for i in whole], [w.scored for w in windows], options.slice_rows, setting.parts.head),
    )
    scores = dict(zip(whole, found, strict=True))
    refuse_broken_logits(reference, scores[0])
    runs = []
    for index in range(1, n):
        broken = watched.broken.get(index)
        drifts: tuple[Drift, ...] = ()
        alone = None
        layers = tuple(watched.drifts[index])
        if index in scores and not all(window.is_finite for window in scores[index]):
            broken = "the output head gives NaN or infinity"
        elif index in scores:
            drifts = drifts_of(asked, scores[0], scores[index], options)
            if options.attribute:
                alone = watched.branches.alone(index, [w.scored for w in windows], options.slice_rows)
                layers = tuple(replace(at, kld_alone=kld) for at, kld in zip(layers, alone.layers, strict=True))
        config = config_gate(*(arithmetic_facts(stream.replay) for stream in (streams[0], streams[index])))
        runs.append(CandidateRun(drifts, layers, config, broken, alone))
    heard = options.noise_floor and n not in watched.broken
    floor = _noise_floor(streams[0], streams[n], asked, options) if heard else None
    if save is not None:
        save(streams[0], scores[0], floor)
    return Measured(tuple(perplexity(part) for part in asked.by_text(scores[0])), tuple(runs), floor)


def drifts_of(
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
