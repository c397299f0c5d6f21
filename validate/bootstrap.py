"""How sure a mean over chunks of text is: the BCa bootstrap, on chunks because tokens of one window are not independent.

    resample chunks with replacement -> means m_b, b = 1..B;  m = the mean itself
    z0 = Phi^-1(share of m_b below m, ties half)              bias
    a  = sum d^3 / (6 (sum d^2)^1.5), d = mean(j) - j         acceleration, j = means with one chunk left out
    ends: the quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the m_b, z = -+1.96 at 95 %

Source: Efron, "Better Bootstrap Confidence Intervals", JASA 1987. Below about eight chunks every such interval is too narrow:
callers say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

BLOCK = 1 << 20  # resampled indices in memory at once


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its interval; the ends are None where one chunk gives no spread to judge by."""

    mean: float
    low: float | None
    high: float | None

    @property
    def upper(self) -> float:
        """The upper end, or the mean itself where there is no interval."""
        return self.mean if self.high is None else self.high

    @property
    def lower(self) -> float:
        """The lower end, or the mean itself where there is no interval."""
        return self.mean if self.low is None else self.low


def interval(chunks: list[Values], resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over all values of all chunks, and its BCa interval from resampling whole chunks.

    The same seed gives the same interval, on any machine.
    """
    sums = np.array([chunk.sum(dtype=np.float64) for chunk in chunks])
    counts = np.array([chunk.size for chunk in chunks], np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(chunks) < 2:
        return Interval(mean, None, None)
    means = _resampled(sums, counts, resamples, seed)
    if means.min() == means.max():
        return Interval(mean, float(means[0]), float(means[0]))
    normal = NormalDist()
    below = ((means < mean).sum() + 0.5 * (means == mean).sum()) / resamples
    bias = normal.inv_cdf(min(max(float(below), 0.5 / resamples), 1 - 0.5 / resamples))
    acceleration = _acceleration(sums, counts)
    ends = []
    for share in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(means, ends)
    return Interval(mean, float(low), float(high))


def _resampled(sums: Values, counts: Values, resamples: int, seed: int) -> Values:
    generator = np.random.default_rng(seed)
    n = len(sums)
    step = max(1, BLOCK // n)
    parts = []
    for start in range(0, resamples, step):
        index = generator.integers(0, n, size=(min(step, resamples - start), n))
        parts.append(sums[index].sum(axis=1) / counts[index].sum(axis=1))
    return np.concatenate(parts)


def _acceleration(sums: Values, counts: Values) -> float:
    without = (sums.sum() - sums) / (counts.sum() - counts)
    distance = without.mean() - without
    spread = float((distance**2).sum())
    return float((distance**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
