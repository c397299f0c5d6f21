"""What quantization did to a model: the same tokens under both, token by token. p is the reference, q the candidate.

    nll_t = -ln q(x_t)        perplexity = e^(mean nll)       d ln PPL = mean (nll_q - nll_p), paired
    KLD_t = sum p (ln p - ln q)                               dp_t = q(x_t) - p(x_t)
    top-1 agreement = share of tokens where both models' likeliest token is the same
    layer cosine = h_p . h_q / (|h_p| |h_q|) of the hidden states after a layer, over tokens

Pairing matters: a model's perplexity is known to about 1 % from a few thousand tokens, the difference of two models
on the same tokens ten times better. Intervals resample whole chunks (bootstrap.py). All logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Interval, interval

Values = NDArray[np.float64]
Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenScores:
    """One model on the scored tokens of one window: nll float64[n] in nats, argmax int64[n], kld against the reference
    float64[n] in nats (None for the reference itself)."""

    nll: Values
    argmax: Tokens
    kld: Values | None = None

    @property
    def is_finite(self) -> bool:
        """False where a NaN or infinity reached the logits."""
        return bool(np.isfinite(self.nll).all() and (self.kld is None or np.isfinite(self.kld).all()))


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
    p1: float
    p99: float


@dataclass(frozen=True)
class LayerCosine:
    """Cosine of a layer's output with the reference's; `lowest` is the worst token's."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Drift:
    """A candidate against the reference. `delta_ln_ppl` is paired."""

    perplexity: float
    delta_ln_ppl: Interval
    kld: Divergence
    top1_agreement: Interval
    target_shift: TargetShift

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
    reference: Sequence[TokenScores], candidate: Sequence[TokenScores], resamples: int = 10_000, seed: int = 0
) -> Drift:
    """Scores of the same windows under both models -> how far they are apart. The candidate's carry `kld`."""
    pairs = list(zip(reference, candidate, strict=True))
    kld = [score.kld for score in candidate if score.kld is not None]
    agree = [(p.argmax == q.argmax).astype(np.float64) for p, q in pairs]
    return Drift(
        perplexity(candidate),
        interval([q.nll - p.nll for p, q in pairs], resamples, seed),
        _divergence(kld, resamples, seed),
        interval(agree, resamples, seed),
        _target_shift(np.concatenate([np.exp(-q.nll) - np.exp(-p.nll) for p, q in pairs])),
    )


def _divergence(kld: list[Values], resamples: int, seed: int) -> Divergence:
    values = np.concatenate(kld)
    median, p90, p95, p99, p999 = (float(v) for v in np.percentile(values, (50, 90, 95, 99, 99.9)))
    return Divergence(interval(kld, resamples, seed), median, p90, p95, p99, p999, float(values.max()))


def _target_shift(shift: Values) -> TargetShift:
    p1, p99 = (float(v) for v in np.percentile(shift, (1, 99)))
    return TargetShift(float(shift.mean()), math.sqrt(float((shift**2).mean())), p1, p99)
