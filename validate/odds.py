"""A distribution over the vocabulary at n positions, seen a slice of tokens at a time, and what is kept of it.

    Odds          from logits: normalised by S = sum e^(r - m), online, with m the maximum so far (head.py)
    RecordedOdds  from log-probabilities r that a file holds, taken as they are: nothing is normalised again, and tokens with
                  r <= -16 do not count towards the divergence, as llama-perplexity has it

        KLD = sum over r > -16 of e^r (r - c + lse_c)        c the candidate's logits, lse_c = ln sum e^c
        reverse = sum q (c - lse_c - r)                      over all tokens; where r was clipped, a lower bound

Everything is float64. Source of the second: llama.cpp, tools/perplexity/perplexity.cpp, log_softmax.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import FormatError
from .drift import TOP, TokenScores, Values

FLOOR = -16.0  # recorded log-probabilities from here down do not count
MASS = (0.9, 1.1)  # what recorded probabilities may add up to; a sound file is within 0.02 of 1


class Likeliest:
    """The five likeliest tokens at n positions, merged from slice to slice."""

    def __init__(self, n: int) -> None:
        self.logits = torch.full((n, 0), -torch.inf, dtype=torch.float64)
        self.tokens = torch.zeros((n, 0), dtype=torch.int64)

    def add(self, start: int, logits: Tensor) -> None:
        """logits float64[n, Vs] of tokens from `start` on. On equal logits the lower token id wins, as in a plain argmax:
        slices come in ascending order, and a stable sort keeps what came first."""
        places = torch.topk(logits, min(TOP + 1, logits.shape[1]), dim=1).indices.sort(dim=1).values
        # Of many equal logits topk keeps any; the plain maximum is put first so that the likeliest is the lowest id.
        first = logits.max(dim=1, keepdim=True).indices
        places = torch.where((places == first).any(dim=1, keepdim=True), places, torch.cat((first, places[:, 1:]), 1))
        values = torch.cat((self.logits, logits.gather(1, places)), 1)
        ids = torch.cat((self.tokens, places + start), 1)
        order = values.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
        self.logits, self.tokens = values.gather(1, order), ids.gather(1, order)

    @property
    def peak(self) -> Tensor:
        """float64[n]: the largest so far."""
        return self.logits[:, 0]


class Odds:
    """One model's distribution at n positions, as far as its vocabulary has been seen."""

    def __init__(self, targets: Tensor) -> None:
        n = len(targets)
        self.targets = targets
        self.likeliest = Likeliest(n)
        self.peak = torch.full((n,), -torch.inf, dtype=torch.float64)
        self.total = torch.zeros(n, dtype=torch.float64)
        self.target_logit = torch.full((n,), -torch.inf, dtype=torch.float64)

    def add(self, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits float64[n, Vs] of tokens from `start` on -> (e^(old peak - new peak) [n], e^(logits - peak) [n, Vs])."""
        self.likeliest.add(start, logits)
        peak = self.likeliest.peak
        shrink = torch.exp(self.peak - peak)
        weights = torch.exp(logits - peak[:, None])
        self.total = self.total * shrink + weights.sum(dim=1)
        self.peak = peak
        _take_targets(self.target_logit, self.targets, start, logits)
        return shrink, weights

    @property
    def log_sum(self) -> Tensor:
        """ln of the sum of e^logit."""
        return self.peak + torch.log(self.total)

    def divergences(self, excess: Tensor, reverse: Tensor, candidate: Odds) -> tuple[Values, Values]:
        """(KLD, reverse KLD) float64[n] of `candidate` from this, given head.py's sums A of both."""
        between = self.log_sum - candidate.log_sum
        return _from_zero(excess / self.total - between), _from_zero(reverse / candidate.total + between)

    def scores(self, kld: Values | None = None, reverse_kld: Values | None = None) -> TokenScores:
        """What is kept of it, after the last slice."""
        nll = (self.log_sum - self.target_logit).numpy()
        confidence = torch.exp(self.peak - self.log_sum).numpy()
        return TokenScores(nll, self.likeliest.tokens.numpy(), confidence, kld, reverse_kld)


class RecordedOdds:
    """Log-probabilities of a file at n positions; `where` names the place in it."""

    def __init__(self, targets: Tensor, where: str) -> None:
        n = len(targets)
        self.targets, self.where = targets, where
        self.likeliest = Likeliest(n)
        self.total = torch.zeros(n, dtype=torch.float64)
        self.target_logit = torch.full((n,), -torch.inf, dtype=torch.float64)

    def add(self, start: int, logits: Tensor) -> tuple[Tensor, Tensor]:
        """As `Odds.add`; no maximum is taken out, since log-probabilities do not overflow."""
        self.likeliest.add(start, logits)
        weights = torch.where(logits > FLOOR, torch.exp(logits), 0.0)
        self.total = self.total + weights.sum(dim=1)
        _take_targets(self.target_logit, self.targets, start, logits)
        return torch.ones_like(self.total), weights

    def divergences(self, excess: Tensor, reverse: Tensor, candidate: Odds) -> tuple[Values, Values]:
        """As `Odds.divergences`. Rounding to 16 bits may leave a little less than 0 of a divergence: it is not hidden."""
        kld, back = excess + self.total * candidate.log_sum, reverse / candidate.total - candidate.log_sum
        return kld.numpy(), back.numpy()

    def scores(self) -> TokenScores:
        """What is kept of it. FormatError where the probabilities of a position do not add up to about 1."""
        wrong = torch.nonzero((self.total < MASS[0]) | (self.total > MASS[1]))
        if len(wrong):
            place = int(wrong[0])
            raise FormatError(
                f"{self.where}: the probabilities of scored position {place} add up to {float(self.total[place]):.4g}, "
                "wanted 1: the file is damaged, make it again"
            )
        confidence = torch.exp(self.likeliest.peak).numpy()
        return TokenScores((-self.target_logit).numpy(), self.likeliest.tokens.numpy(), confidence)


def _take_targets(found: Tensor, targets: Tensor, start: int, logits: Tensor) -> None:
    """The logits of those targets that lie in this slice, in place."""
    here = (targets >= start) & (targets < start + logits.shape[1])
    found[here] = logits[here, targets[here] - start]


def _from_zero(kld: Tensor) -> Values:
    """Rounding may leave -1e-17 of an exact 0; NaN passes through."""
    found: Values = np.maximum(kld.numpy(), 0.0)
    return found
