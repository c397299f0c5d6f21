"""From final hidden states to what each model says of every scored token, a slice of the vocabulary at a time.

For logits r (reference) and c (candidate) of one position, online over slices and in float64, with m the maximum of r so far:

    S = sum e^(r - m)        A = sum e^(r - m) (r - c)        both times e^(m - m') when the maximum moves to m'
    lse_r = m + ln S         nll = lse - logit[target]        KLD = A / S - (lse_r - lse_c)

which is sum p (ln p - ln q) without any row of 32,000 probabilities; the reverse divergence is the same with r and c
exchanged. The five likeliest tokens are merged from slice to slice. Peak memory, in bytes: 4 m Vs d (one slice of the
output matrix for each of m models) + about 50 n Vs for a window of n scored positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..convert.progress import Progress, silent
from .drift import TOP, TokenScores, Values
from .stream import Stream, Tokens, as_torch, finite


class _Odds:
    """One model's distribution at n positions, as far as its vocabulary has been seen."""

    def __init__(self, targets: Tensor) -> None:
        n = len(targets)
        self.targets = targets
        self.peak = torch.full((n,), -torch.inf, dtype=torch.float64)
        self.total = torch.zeros(n, dtype=torch.float64)
        self.top_logits = torch.full((n, 0), -torch.inf, dtype=torch.float64)
        self.top = torch.zeros((n, 0), dtype=torch.int64)
        self.target_logit = torch.full((n,), -torch.inf, dtype=torch.float64)

    def add(self, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits float64[n, Vs] of tokens from `start` on -> (e^(old peak - new peak) [n], e^(logits - peak) [n, Vs])."""
        self._rank(start, logits)
        peak = self.top_logits[:, 0]
        shrink = torch.exp(self.peak - peak)
        weights = torch.exp(logits - peak[:, None])
        self.total = self.total * shrink + weights.sum(dim=1)
        self.peak = peak
        here = (self.targets >= start) & (self.targets < start + logits.shape[1])
        self.target_logit[here] = logits[here, self.targets[here] - start]
        return shrink, weights

    def _rank(self, start: int, logits: Tensor) -> None:
        """Merge the slice's likeliest tokens into `top`. On equal logits the lower token id wins, as in a plain argmax:
        slices come in ascending order, and a stable sort keeps what came first."""
        places = torch.topk(logits, min(TOP + 1, logits.shape[1]), dim=1).indices.sort(dim=1).values
        # Of many equal logits topk keeps any; the plain maximum is put first so that the likeliest is the lowest id.
        first = logits.max(dim=1, keepdim=True).indices
        places = torch.where((places == first).any(dim=1, keepdim=True), places, torch.cat((first, places[:, 1:]), 1))
        values = torch.cat((self.top_logits, logits.gather(1, places)), 1)
        ids = torch.cat((self.top, places + start), 1)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        self.top_logits, self.top = values.gather(1, order), ids.gather(1, order)

    @property
    def log_sum(self) -> Tensor:
        return self.peak + torch.log(self.total)

    def scores(self, kld: Tensor | None = None, reverse_kld: Tensor | None = None) -> TokenScores:
        nll = (self.log_sum - self.target_logit).numpy()
        confidence = torch.exp(self.peak - self.log_sum).numpy()
        return TokenScores(nll, self.top.numpy(), confidence, _from_zero(kld), _from_zero(reverse_kld))


def _from_zero(kld: Tensor | None) -> Values | None:
    """Rounding may leave -1e-17 of an exact 0; NaN passes through."""
    return None if kld is None else np.maximum(kld.numpy(), 0.0)


class _Window:
    """The online sums of one window, for the reference (streams[0]) and each candidate."""

    def __init__(self, targets: Tokens, n_streams: int) -> None:
        self.odds = [_Odds(torch.from_numpy(targets)) for _ in range(n_streams)]
        n = len(targets)
        self.excess = [torch.zeros(n, dtype=torch.float64) for _ in range(n_streams - 1)]  # A, above
        self.reverse = [torch.zeros(n, dtype=torch.float64) for _ in range(n_streams - 1)]  # A with r and c exchanged

    def add(self, start: int, logits: list[Tensor]) -> None:
        shrink, weights = self.odds[0].add(start, logits[0])
        for index, candidate in enumerate(logits[1:]):
            apart = logits[0] - candidate
            self.excess[index] = self.excess[index] * shrink + (weights * apart).sum(dim=1)
            own_shrink, own_weights = self.odds[index + 1].add(start, candidate)
            self.reverse[index] = self.reverse[index] * own_shrink - (own_weights * apart).sum(dim=1)

    def scores(self) -> list[TokenScores]:
        reference = self.odds[0]
        found = [reference.scores()]
        for excess, reverse, candidate in zip(self.excess, self.reverse, self.odds[1:], strict=True):
            between = reference.log_sum - candidate.log_sum
            found.append(candidate.scores(excess / reference.total - between, reverse / candidate.total + between))
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
    windows = [_Window(targets, len(streams)) for _, targets in scored]
    n_tokens = streams[0].model.tensors[streams[0].replay.head_name].shape[0]
    starts = range(0, n_tokens, slice_rows)
    for done, start in enumerate(starts):
        rows = [_head_rows(stream, start, min(start + slice_rows, n_tokens)) for stream in streams]
        for index, (window, (first, targets)) in enumerate(zip(windows, scored, strict=True)):
            logits = [
                stream.replay.logits(stream.states[index][:, first : first + len(targets)], *matrix).double()
                for stream, matrix in zip(streams, rows, strict=True)
            ]
            window.add(start, logits)
        progress(done + 1, len(starts), "output head")
    return [list(each) for each in zip(*(window.scores() for window in windows), strict=True)]


def _head_rows(stream: Stream, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """Rows [start, stop) of the output matrix, and of its bias where it has one."""
    replay, tensors = stream.replay, stream.model.tensors
    rows = finite(replay.head_name, as_torch(tensors[replay.head_name].read_float32(start, stop)))
    if replay.head_bias_name is None:
        return rows, None
    return rows, finite(replay.head_bias_name, as_torch(tensors[replay.head_bias_name].load_float32()))[start:stop]
