"""From final hidden states to what each model says of every scored token, a slice of the vocabulary at a time.

For logits r (reference) and c (candidate) of one position, online over slices and in float64, with m the maximum of r so far:

    S = sum e^(r - m)        A = sum e^(r - m) (r - c)        both times e^(m - m') when the maximum moves to m'
    lse_r = m + ln S         nll = lse - logit[target]        KLD = A / S - (lse_r - lse_c)

which is sum p (ln p - ln q) without any row of 32,000 probabilities; the reverse divergence is the same with r and c
exchanged. The five likeliest tokens are merged from slice to slice. Peak memory, in bytes: 4 m Vs d (one slice of the
output matrix for each of m models) + about 50 n Vs for a window of n scored positions.

The reference need not be a model that runs: whatever gives a slice of the vocabulary for a window (`Speaker`) can stand in
its place, such as hidden states that were saved (baseline.py) or a file of log-probabilities (llama_base.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..convert.model import LazyTensor
from ..convert.progress import Progress, silent
from .drift import TokenScores
from .odds import Odds, RecordedOdds
from .replay import Replay
from .stream import Stream, Tokens, as_torch, finite

# (index of a window, first position, number of positions) -> what belongs to those positions
Slice = Callable[[int, int, int], Tensor]


class Speaker(Protocol):
    """Anything that says how likely each token of the vocabulary is, at every scored position of every window."""

    @property
    def n_tokens(self) -> int:
        """The size of its vocabulary."""

    def odds(self, window: int, targets: Tensor, /) -> Odds | RecordedOdds:
        """Empty sums for the positions of one window, whose successors are `targets` int64[n]."""

    def slice(self, start: int, stop: int, /) -> Slice:
        """Loads what tokens [start, stop) need; the function gives their logits float64[n, stop - start]."""


class Head:
    """A model's final norm and output matrix over its final hidden states."""

    def __init__(self, replay: Replay, tensors: Mapping[str, LazyTensor], hidden: Slice) -> None:
        """`hidden` gives float32[1, n, d] after the last layer; `replay` has its outer weights loaded."""
        self._replay, self._tensors, self._hidden = replay, tensors, hidden

    @property
    def n_tokens(self) -> int:
        """Rows of the output matrix."""
        return self._tensors[self._replay.head_name].shape[0]

    def odds(self, _window: int, targets: Tensor) -> Odds:
        """As `Speaker.odds`."""
        return Odds(targets)

    def slice(self, start: int, stop: int) -> Slice:
        """As `Speaker.slice`. NonFiniteError names a weight of the output matrix."""
        rows, bias = self._rows(start, stop)
        return lambda window, first, n: self._replay.logits(self._hidden(window, first, n), rows, bias).double()

    def _rows(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Rows [start, stop) of the output matrix, and of its bias where it has one."""
        name, bias_name = self._replay.head_name, self._replay.head_bias_name
        rows = finite(name, as_torch(self._tensors[name].read_float32(start, stop)))
        if bias_name is None:
            return rows, None
        return rows, finite(bias_name, as_torch(self._tensors[bias_name].load_float32()))[start:stop]


def head_of(stream: Stream) -> Head:
    """The head over a stream that has gone through all its layers."""
    return Head(
        stream.replay, stream.model.tensors, lambda window, first, n: stream.states[window][:, first : first + n]
    )


class _Window:
    """The online sums of one window, for the reference and each candidate."""

    def __init__(self, reference: Odds | RecordedOdds, candidates: Sequence[Odds]) -> None:
        self.reference, self.candidates = reference, candidates
        n = len(reference.targets)
        self.excess = [torch.zeros(n, dtype=torch.float64) for _ in candidates]  # A, above
        self.reverse = [torch.zeros(n, dtype=torch.float64) for _ in candidates]  # A with r and c exchanged

    def add(self, start: int, logits: list[Tensor]) -> None:
        shrink, weights = self.reference.add(start, logits[0])
        for index, (odds, candidate) in enumerate(zip(self.candidates, logits[1:], strict=True)):
            apart = logits[0] - candidate
            self.excess[index] = self.excess[index] * shrink + (weights * apart).sum(dim=1)
            own_shrink, own_weights = odds.add(start, candidate)
            self.reverse[index] = self.reverse[index] * own_shrink - (own_weights * apart).sum(dim=1)

    def scores(self) -> list[TokenScores]:
        found = [self.reference.scores()]
        for excess, reverse, odds in zip(self.excess, self.reverse, self.candidates, strict=True):
            found.append(odds.scores(*self.reference.divergences(excess, reverse, odds)))
        return found


def score(
    streams: Sequence[Stream],
    scored: Sequence[tuple[int, Tokens]],
    slice_rows: int = 4096,
    progress: Progress = silent,
) -> list[list[TokenScores]]:
    """After the last layer: scores[stream][window], streams[0] being the reference of the others' KLD.

    scored  for each window (first position whose logits count, the tokens that follow from there on: int64[n])
    """
    first, *rest = (head_of(stream) for stream in streams)
    return score_against(first, rest, scored, slice_rows, progress)


def score_against(
    reference: Speaker,
    candidates: Sequence[Head],
    scored: Sequence[tuple[int, Tokens]],
    slice_rows: int = 4096,
    progress: Progress = silent,
) -> list[list[TokenScores]]:
    """As `score`, whatever the reference is: the scores of the reference, then of each candidate."""
    windows = []
    for index, (_, targets) in enumerate(scored):
        came = torch.from_numpy(targets)
        windows.append(_Window(reference.odds(index, came), [head.odds(index, came) for head in candidates]))
    starts = range(0, reference.n_tokens, slice_rows)
    for done, start in enumerate(starts):
        stop = min(start + slice_rows, reference.n_tokens)
        slices = [speaker.slice(start, stop) for speaker in (reference, *candidates)]
        for index, (window, (first, targets)) in enumerate(zip(windows, scored, strict=True)):
            window.add(start, [logits(index, first, len(targets)) for logits in slices])
        progress(done + 1, len(starts), "output head")
    return [list(each) for each in zip(*(window.scores() for window in windows), strict=True)]
