"""How far rows are from others of the same shape, in one pass: sums in float64, and what became of each block of a scale.

    a reference, b decoded:  sum a^2, sum b^2, sum a b, sum (b - a)^2, largest |b - a|
    a block counts as zero      where every b is 0 and some a is not
    a weight counts as clipped  where a lies beyond its block's smallest or largest b by more than half a step of the code:
                                rounding moves no weight that far out, only a range that ends too early does

        step = the least distance of two different b of the block * unevenness (largest / smallest step of the code)
        the scale's own rounding to fp16 is no clipping: |b| / 2048 is granted too

Each sum is eight partial ones, in an order that no compiler changes: the same numbers on any CPU.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from .cpu.jit import jit
from .scheme import Rows

LANES = 8
PLAIN_RUN = 64  # elements at a time where no scale is shared
SCALE_ROUNDING = np.float32(2.0**-11)

# Elements that share one scale, where that is not the whole block, and how uneven the steps of a code are.
_SHARE_16 = ("Q2_K", "Q3_K", "Q6_K", "IQ1_M", "IQ2_XS", "IQ2_S", "NVFP4")
_SHARE_32 = ("Q4_K", "Q5_K", "IQ1_S", "IQ2_XXS", "IQ3_XXS", "IQ3_S", "IQ4_XS")
SHARE = dict.fromkeys(_SHARE_16, 16) | dict.fromkeys(_SHARE_32, 32)
UNEVENNESS = {"IQ4_NL": 24 / 11, "IQ4_XS": 24 / 11, "MXFP4": 4.0, "NVFP4": 4.0, "IQ3_S": 1.25, "IQ3_XXS": 1.25}


class Difference:
    """What the rows added so far come to."""

    def __init__(self) -> None:
        self._sums = np.zeros(5, np.float64)  # those of the module's first line, in its order
        self._counts = np.zeros(2, np.int64)

    def add(self, reference: Rows, decoded: Rows, dtype: DType) -> None:
        """Rows float32[n, columns] of both; `dtype` is what `decoded` was stored as: a plain one has no blocks."""
        a, b = (np.ascontiguousarray(rows, np.float32).reshape(-1) for rows in (reference, decoded))
        run = share(dtype) or PLAIN_RUN
        # A code of n bits has no more than 2^n values, so no step is less than that share of a block's range.
        least = np.float32(1 / (2 ** (int(dtype.bits_per_weight) + 1) - 1)) if dtype.is_block else np.float32(0)
        unevenness = np.float32(UNEVENNESS.get(dtype.name, 1.0))
        bits = a.view(np.int32), b.view(np.int32)
        _add(a, b, *bits, run, dtype.is_block, least, unevenness, self._sums, self._counts)

    @property
    def is_finite(self) -> bool:
        """False where a NaN or infinity was added; no other number means anything then."""
        return math.isfinite(self._sums[3])

    @property
    def relative_error(self) -> float:
        """|b - a| / |a|: infinite where a is all zeros and b is not."""
        if self._sums[0] == 0:
            return 0.0 if self._sums[3] == 0 else math.inf
        return math.sqrt(self._sums[3] / self._sums[0])

    @property
    def cosine(self) -> float:
        """a b / (|a| |b|); of zeros with zeros 1, with anything else 0."""
        if self._sums[3] == 0:
            return 1.0
        if self._sums[0] == 0 or self._sums[1] == 0:
            return 0.0
        return float(min(1.0, self._sums[2] / math.sqrt(self._sums[0]) / math.sqrt(self._sums[1])))

    @property
    def largest(self) -> float:
        """The largest single |b - a|."""
        return float(self._sums[4])

    @property
    def n_zero_blocks(self) -> int:
        """Runs of weights under one scale that are all zeros, though the reference's are not."""
        return int(self._counts[0])

    @property
    def n_clipped(self) -> int:
        """Weights beyond the range of their run."""
        return int(self._counts[1])


def share(dtype: DType) -> int:
    """Weights in a row that share one scale; 0 for a plain type."""
    return SHARE.get(dtype.name, dtype.block) if dtype.is_block else 0


@jit
def _add(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    a_bits: NDArray[np.int32],
    b_bits: NDArray[np.int32],
    run: int,
    blocks: bool,
    least: np.float32,
    unevenness: np.float32,
    sums: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    lanes = np.zeros((5, LANES), np.float64)
    whole = a.size // run * run
    for start in range(0, whole, run):
        stop = start + run
        _add_run(a[start:stop], b[start:stop], lanes)
        if blocks:
            bits = a_bits[start:stop], b_bits[start:stop]
            _add_block(a[start:stop], b[start:stop], *bits, least, unevenness, counts)
    for i in range(whole, a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        d = y - x
        sums[0] += x * x
        sums[1] += y * y
        sums[2] += x * y
        sums[3] += d * d
        sums[4] = max(sums[4], abs(d))
    for k in range(LANES):
        for row in range(4):
            sums[row] += lanes[row, k]
        sums[4] = max(sums[4], lanes[4, k])


@jit
def _add_run(a: NDArray[np.float32], b: NDArray[np.float32], lanes: NDArray[np.float64]) -> None:
    for i in range(0, a.size, LANES):
        for k in range(LANES):
            x, y = np.float64(a[i + k]), np.float64(b[i + k])
            d = y - x
            lanes[0, k] += x * x
            lanes[1, k] += y * y
            lanes[2, k] += x * y
            lanes[3, k] += d * d
            lanes[4, k] = max(lanes[4, k], abs(d))


@jit
def _add_block(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    a_bits: NDArray[np.int32],
    b_bits: NDArray[np.int32],
    least: np.float32,
    unevenness: np.float32,
    counts: NDArray[np.int64],
) -> None:
    lowest, highest = _ends(a_bits)
    low, high = _ends(b_bits)
    if low == high:
        counts[0] += low == 0 and (lowest != 0 or highest != 0)
        return
    first, last = low - abs(low) * SCALE_ROUNDING, high + abs(high) * SCALE_ROUNDING
    beyond = max(first - lowest, highest - last)
    if beyond <= np.float32(0.5) * unevenness * least * (high - low):
        return
    half = np.float32(0.5) * unevenness * _least_step(b)
    if beyond > half:
        first, last = first - half, last + half
        for i in range(a.size):
            counts[1] += (a[i] < first) or (a[i] > last)


@jit
def _ends(bits: NDArray[np.int32]) -> tuple[np.float32, np.float32]:
    """Smallest and largest of float32 bits: as integers, which compare in vectors, negative ones with magnitude inverted."""
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        key = np.int32(bits[i] ^ ((bits[i] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        low, high = min(low, key), max(high, key)
    return _value(low), _value(high)


@jit
def _value(key: np.int32) -> np.float32:
    value: np.float32 = np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)
    return value


@jit
def _least_step(b: NDArray[np.float32]) -> np.float32:
    """The least distance of two different values, compared as bits; those of 0, less one, are the largest."""
    least = np.uint32(0xFFFFFFFF)
    for place in range(b.size):
        for i in range(b.size):
            bits = np.uint32(np.float32(abs(b[i] - b[place])).view(np.uint32) - np.uint32(1))
            least = min(least, bits)
    step: np.float32 = np.uint32(least + np.uint32(1)).view(np.float32)
    return step
