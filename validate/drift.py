"""What quantization did to a model: the same tokens under both, token by token. p is the reference, q the candidate.

    nll_t = -ln q(x_t)        perplexity = e^(mean nll)       d ln PPL = mean (nll_q - nll_p), paired
    KLD_t = sum p (ln p - ln q)                               dp_t = q(x_t) - p(x_t)
    top-1 agreement = share of tokens where both models' likeliest token is the same (where not, it is a flip)
    top-5 agreement = mean share of the reference's five likeliest tokens that are among the candidate's five
    histogram = tokens by their KLD, in bins of a quarter of a decade

Pairing matters: a model's perplexity is known to about 1 % from a few thousand tokens, the difference of two models
on the same tokens ten times better. Intervals resample whole chunks (bootstrap.py). All logarithms are natural.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Interval, interval

Values = NDArray[np.float64]
Tokens = NDArray[np.int64]


TOP = 5  # likeliest tokens that are compared
CONFIDENCE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # edges of the bands that flips are counted in
# Edges of the bins that KLD is counted in, 1e-7 to 100: four a decade, as decimal fractions, the same on every machine.
KLD_EDGES = (*(float(f"{step}e{power}") for power in range(-7, 2) for step in ("1", "1.8", "3.2", "5.6")), 100.0)


@dataclass(frozen=True)
class TokenScores:
    """One model on the n scored tokens of one window.

    nll         float64[n] in nats
    top         int64[n, 5]: the likeliest tokens, likeliest first (fewer columns in a smaller vocabulary)
    confidence  float64[n]: the probability of the likeliest
    kld, reverse_kld  float64[n] in nats, from the reference and to it; None for the reference itself
    """

    nll: Values
    top: Tokens
    confidence: Values
    kld: Values | None = None
    reverse_kld: Values | None = None

    @property
    def argmax(self) -> Tokens:
        """int64[n]: the likeliest token."""
        return self.top[:, 0]

    @property
    def is_finite(self) -> bool:
        """False where a NaN or infinity reached the logits."""
        divergences = [kld for kld in (self.kld, self.reverse_kld) if kld is not None]
        return all(bool(np.isfinite(values).all()) for values in (self.nll, *divergences))


@dataclass(frozen=True)
class Divergence:
    """KLD in nats over the scored tokens."""

    mean: Interval
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class TargetShift:
    """dp, the change in the probability of the token that came: noise moves it both ways alike, damage downwards."""

    mean: float
    rms: float
    p01: float
    p1: float
    p5: float
    p25: float
    median: float
    p75: float
    p95: float
    p99: float
    p999: float


@dataclass(frozen=True)
class FlipBand:
    """Of the tokens where the reference's likeliest has a probability in [low, high): how many have another one now."""

    low: float
    high: float
    tokens: int
    flips: int


@dataclass(frozen=True)
class Flips:
    """Tokens whose likeliest successor changed, among them those that were right (the token that came) before or after."""

    tokens: int
    changed: int
    right_to_wrong: int
    wrong_to_right: int
    bands: tuple[FlipBand, ...]


@dataclass(frozen=True)
class Histogram:
    """Tokens by KLD: counts[0] of them below edges[0], counts[i] in [edges[i - 1], edges[i]), counts[-1] from edges[-1] on."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Drift:
    """A candidate against the reference. `delta_ln_ppl` is paired."""

    perplexity: float
    delta_ln_ppl: Interval
    kld: Divergence
    reverse_kld: Divergence
    top1_agreement: Interval
    top5_agreement: Interval
    target_shift: TargetShift
    flips: Flips
    histogram: Histogram

    @property
    def ppl_ratio_upper(self) -> float:
        """How many times the reference's perplexity the candidate's may be, at the upper end of the interval."""
        return exponential(self.delta_ln_ppl.upper)


def exponential(nats: float) -> float:
    """e^nats, infinity where a float cannot hold it: a broken model's perplexity is a result, not a crash."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def perplexity(scores: Sequence[TokenScores]) -> float:
    """e^(mean nll) over all scored tokens of all windows."""
    return exponential(float(np.concatenate([score.nll for score in scores]).mean()))


def drift(
    reference: Sequence[TokenScores],
    candidate: Sequence[TokenScores],
    targets: Sequence[Tokens],
    resamples: int = 10_000,
    seed: int = 0,
) -> Drift:
    """Scores of the same windows under both models -> how far they are apart. The candidate's carry divergences.

    targets  for each window the tokens that came, int64[n]
    """
    pairs = list(zip(reference, candidate, strict=True))
    kld = [score.kld for score in candidate if score.kld is not None]
    agree = [(p.argmax == q.argmax).astype(np.float64) for p, q in pairs]
    return Drift(
        perplexity(candidate),
        interval([q.nll - p.nll for p, q in pairs], resamples, seed),
        _divergence(kld, resamples, seed),
        _divergence([score.reverse_kld for score in candidate if score.reverse_kld is not None], resamples, seed),
        interval(agree, resamples, seed),
        interval([_overlap(p.top, q.top) for p, q in pairs], resamples, seed),
        _target_shift(np.concatenate([np.exp(-q.nll) - np.exp(-p.nll) for p, q in pairs])),
        _flips(pairs, np.concatenate(targets)),
        kld_histogram(np.concatenate(kld)),
    )


def kld_histogram(kld: Values) -> Histogram:
    """Divergences float64[n] in nats -> how many there are in each bin. A value on an edge is in the bin above it."""
    bins = np.searchsorted(KLD_EDGES, kld, side="right")
    return Histogram(KLD_EDGES, tuple(int(n) for n in np.bincount(bins, minlength=len(KLD_EDGES) + 1)))


def _overlap(ours: Tokens, theirs: Tokens) -> Values:
    """The share of each row's tokens int64[n, 5] that are in the same row of `theirs`, in any order."""
    found: Values = (ours[:, :, None] == theirs[:, None, :]).any(axis=2).mean(axis=1)
    return found


def _divergence(kld: list[Values], resamples: int, seed: int) -> Divergence:
    values = np.concatenate(kld)
    median, p90, p95, p99, p999 = (float(v) for v in np.percentile(values, (50, 90, 95, 99, 99.9)))
    return Divergence(interval(kld, resamples, seed), median, p90, p95, p99, p999, float(values.max()))


def _target_shift(shift: Values) -> TargetShift:
    shares = (float(v) for v in np.percentile(shift, (0.1, 1, 5, 25, 50, 75, 95, 99, 99.9)))
    return TargetShift(float(shift.mean()), math.sqrt(float((shift**2).mean())), *shares)


def _flips(pairs: Sequence[tuple[TokenScores, TokenScores]], targets: Tokens) -> Flips:
    before = np.concatenate([p.argmax for p, _ in pairs])
    after = np.concatenate([q.argmax for _, q in pairs])
    confidence = np.concatenate([p.confidence for p, _ in pairs])
    changed = before != after
    # The last band holds a probability of exactly 1 too.
    band = np.minimum(np.searchsorted(CONFIDENCE, confidence, side="right") - 1, len(CONFIDENCE) - 2)
    bands = tuple(
        FlipBand(low, high, int((band == k).sum()), int(changed[band == k].sum()))
        for k, (low, high) in enumerate(itertools.pairwise(CONFIDENCE))
    )
    right_to_wrong = int(((before == targets) & changed).sum())
    wrong_to_right = int(((after == targets) & changed).sum())
    return Flips(len(targets), int(changed.sum()), right_to_wrong, wrong_to_right, bands)
