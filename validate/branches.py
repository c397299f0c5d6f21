"""What one layer of a candidate does by itself: a few windows of the reference that leave it for that layer.

    reference   h0 --[0]-- h1 --[1]-- h2 --[2]-- h3 -- head
    isolated               h1 --[1']- b2                       b2 against h2: the error that layer 1 adds
    branch                            b2 --[2]-- b3 -- head    its odds against the reference's: what that costs

h1 rides with the candidate through its layer 1, b2 with the reference through all layers that follow, so each weight is
still loaded once. A branch more than layers begins at the embedding, one has the candidate's final norm and head alone.

    passes of n windows through one layer, for each of m candidates of L layers:  m L isolated, m L (L + 1) / 2 branches
    memory of the branches: 4 m L n T d bytes          n windows of T tokens, width d
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .drift import TokenScores
from .head import score
from .layers import Alone, Apart, apart
from .question import FEW_CHUNKS
from .states import States
from .stream import Stream, Tokens

Scored = Sequence[tuple[int, Tokens]]  # as head.score takes it
_EMBEDDING = -1  # where a branch begins that has the candidate's embedding


class Branches:
    """Follows the layers of `streams` (the reference, then the candidates) on their first `FEW_CHUNKS` windows."""

    def __init__(self, streams: Sequence[Stream], attribute: bool) -> None:
        """`attribute`: go on with what leaves each layer, so that `alone` can say what it costs."""
        self._streams = streams
        self._n = min(FEW_CHUNKS, len(streams[0].states))
        self._attribute = attribute
        self.begun: list[tuple[int, int]] = []  # for each rider of the reference (candidate, layer)
        for index in range(1, len(streams)):
            self._branch(index, _EMBEDDING, self._few(index))
            streams[index].riders = [self._few(0)]

    def isolated(self, index: int, layer: int) -> Apart | None:
        """After both have run `layer`: candidate `index` on the reference's input; None where its output is not finite."""
        stream = self._streams[index]
        (output,) = stream.riders
        last = layer + 1 == stream.n_layers
        stream.riders = [] if last else [self._few(0)]
        if not _is_finite(output):
            return None
        self._branch(index, layer, output)
        return apart(self._few(0), output)

    def alone(self, index: int, scored: Scored, slice_rows: int) -> Alone:
        """After all layers: what each part of candidate `index` costs. `scored` is of all windows, as in head.score."""
        reference = self._streams[0]
        layers = range(_EMBEDDING, reference.n_layers)
        found = dict.fromkeys(layers, 0.0)  # where no branch was begun the output was the reference's own
        begun = {layer: rider for (of, layer), rider in zip(self.begun, reference.riders, strict=True) if of == index}
        if begun:
            # One call, so that the head's rows are read once: every branch's windows after those of the one before.
            few = list(scored[: self._n]) * len(begun)
            branches = [state for rider in begun.values() for state in rider]
            pair = [_with(reference, self._few(0) * len(begun)), _with(reference, branches)]
            scores = score(pair, few, slice_rows)[1]
            for place, layer in enumerate(begun):
                found[layer] = _mean_kld(scores[place * self._n : (place + 1) * self._n])
        pair = [_with(each, self._few(0)) for each in (reference, self._streams[index])]
        head = _mean_kld(score(pair, scored[: self._n], slice_rows)[1])
        return Alone(found[_EMBEDDING], tuple(found[layer] for layer in layers[1:]), head)

    def _few(self, index: int) -> list[Tensor]:
        states = self._streams[index].states
        return [states[window] for window in range(self._n)]

    def _branch(self, index: int, layer: int, output: States) -> None:
        own = self._few(0)
        if self._attribute and not all(torch.equal(a, b) for a, b in zip(own, output, strict=True)):
            reference = self._streams[0]
            reference.riders.append(reference.keep(output, sum(state.shape[1] for state in output)))
            self.begun.append((index, layer))


def _with(stream: Stream, states: States) -> Stream:
    other = copy.copy(stream)
    other.states = states
    return other


def _is_finite(states: States) -> bool:
    return all(bool(torch.isfinite(state).all()) for state in states)


def _mean_kld(scores: Sequence[TokenScores]) -> float:
    kld = [float(value) for window in scores if window.kld is not None for value in window.kld]
    return math.fsum(kld) / len(kld) if all(math.isfinite(value) for value in kld) else math.inf
