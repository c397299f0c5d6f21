"""Q4_0, compiled: without importance a block at a time; with importance 64 blocks at once, each in a lane of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q4_0 as DTYPE
from ..reference.checks import SEARCH_LIMIT, refuse_non_finite, refuse_scale, refuse_values, relative_importance
from ..reference.q4_0 import BLEND, GRID, OFFSETS
from ..reference.q8_0 import FP32_MIN
from ..scheme import Packed, Rows
from .half import HALF_LIMIT, INFINITY, MAGNITUDE, SIGN, narrow_half, round_scale, widen_half
from .jit import jit
from .tile import (
    ONE,
    SOUND,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    code,
    exact_error,
    extremes,
    fit_sums,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
)

__all__ = ["DTYPE", "decode", "encode"]

BLOCK, HALF_BLOCK, LANES = 32, 16, 128
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
LOW, HIGH, EIGHTH, ROUND, TOP = np.float32(-8), np.float32(7), np.float32(-8), np.float32(8.5), np.int32(15)
N_GRID, N_TRIED = len(GRID), len(GRID) + len(OFFSETS)

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 18] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    if importance is None:
        answer = _encode_largest(blocks, blocks.view(np.uint32), packed.reshape(-1, DTYPE.nbytes))
    else:
        relative = relative_importance(importance, columns).reshape(-1, DTYPE.block)
        answer = _encode_searched(blocks, blocks.view(np.uint32), relative, packed.reshape(-1, DTYPE.nbytes))
    if answer == VALUE_REFUSED and importance is None:
        refuse_non_finite(rows)
    elif answer == VALUE_REFUSED:
        refuse_values(rows, SEARCH_LIMIT)
    elif answer != SOUND:
        refuse_scale(answer, columns, DTYPE.block)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode_largest(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    overflowed = SOUND
    half_block = packed.shape[1] - 2
    for n in range(blocks.shape[0]):
        # As integers, positive floats order by magnitude and all lie below the negative ones, which do so too.
        positive, negative = np.int32(0), SIGN
        for i in range(blocks.shape[1]):
            positive = max(positive, np.int32(bits[n, i]))
            negative = max(negative, bits[n, i])
        below = np.uint32(negative & MAGNITUDE)
        if max(np.uint32(positive), below) >= INFINITY:
            return VALUE_REFUSED
        extreme = np.uint32(positive).view(np.float32)
        if below > np.uint32(positive) or (below == np.uint32(positive) and _negative_first(bits[n], below)):
            extreme = np.uint32(negative).view(np.float32)
        d = extreme / EIGHTH
        if abs(d) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = n
        inverse = ONE / d if abs(d) >= FP32_MIN else ZERO
        half = narrow_half(d)
        packed[n, 0], packed[n, 1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        for i in range(half_block):
            low = min(np.int32(blocks[n, i] * inverse + ROUND), TOP)
            high = min(np.int32(blocks[n, half_block + i] * inverse + ROUND), TOP)
            packed[n, 2 + i] = np.uint8(low | high << 4)
    return overflowed


@jit
def _negative_first(bits: Bits, magnitude: np.uint32) -> bool:
    """Whether the first of several elements of the same, not zero, largest magnitude is negative."""
    for i in range(bits.shape[0]):
        if np.uint32(bits[i] & MAGNITUDE) == magnitude:
            return bool(magnitude != np.uint32(0) and bits[i] != magnitude)
    return False


@jit
def _encode_searched(blocks: Floats, bits: Bits, importance: Floats, packed: Bytes) -> int:
    x, w = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.float32)
    scale, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    means = np.empty(blocks.shape[0] // max(importance.shape[0], 1), np.float32)
    _row_means(blocks, importance.shape[0], means)
    overflowed = SOUND
    for first in range(0, blocks.shape[0], LANES):
        if magnitude_bits(bits, first, min(first + LANES, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        load_importance(importance, first, w)
        _weights(x, w, means, first, importance.shape[0])
        _fit_blocks(x, w, scale)
        for lane in range(LANES):
            if abs(scale[lane]) >= HALF_LIMIT and overflowed == SOUND:
                overflowed = first + lane
            d[lane] = round_scale(scale[lane])
        _fit_again(x, w, d)
        _store(x, d, first, packed)
    return overflowed


@jit
def _row_means(blocks: Floats, per_row: int, means: Floats) -> None:
    """mean(x^2) of each row, in eight float64 sums as the reference's."""
    sums = np.empty(8, np.float64)
    for row in range(means.shape[0]):
        sums[:] = 0.0
        for block in range(row * per_row, (row + 1) * per_row):
            for i in range(0, BLOCK, sums.shape[0]):
                for k in range(sums.shape[0]):
                    sums[k] += np.float64(blocks[block, i + k] * blocks[block, i + k])
        row_sum = 0.0
        for k in range(sums.shape[0]):
            row_sum += sums[k]
        means[row] = row_sum / (per_row * BLOCK)


@jit
def _weights(x: Floats, w: Floats, means: Floats, first: int, per_row: int) -> None:
    """importance * sqrt(mean + x^2) + BLEND * sqrt(mean), in place of the importance in `w`."""
    mean, even = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        mean[lane] = means[min((first + lane) // per_row, means.shape[0] - 1)]
        even[lane] = BLEND * np.sqrt(mean[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            w[i, lane] = w[i, lane] * np.sqrt(mean[lane] + x[i, lane] * x[i, lane]) + even[lane]


@jit
def _fit_blocks(x: Floats, w: Floats, scale: Floats) -> None:
    """Step 1: the scale of each lane's block, over the grid and then next to the winner."""
    inverse, trial, chosen = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    best, cross, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    centre = np.empty(LANES, np.float32)
    extremes(x, cross, squares)
    for lane in range(LANES):
        inverse[lane] = reciprocal(squares[lane] if squares[lane] >= -cross[lane] else cross[lane])
        best[lane] = scale[lane] = chosen[lane] = centre[lane] = ZERO
    for attempt in range(N_TRIED):
        g = GRID[attempt] if attempt < N_GRID else OFFSETS[attempt - N_GRID]
        for lane in range(LANES):
            centre[lane] = chosen[lane] if attempt == N_GRID else centre[lane]
            trial[lane] = (centre[lane] + g) * inverse[lane]
        fit_sums(x, w, trial, LOW, HIGH, cross, squares)
        for lane in range(LANES):
            fitted = cross[lane] * reciprocal(squares[lane])
            gain = cross[lane] * fitted
            better = gain > best[lane]
            best[lane] = gain if better else best[lane]
            scale[lane] = fitted if better else scale[lane]
            chosen[lane] = g if better else chosen[lane]


@jit
def _fit_again(x: Floats, w: Floats, d: Floats) -> None:
    """Step 2: fit once more to the codes under the fp16 d; the d of less exact error stays."""
    inverse, again, error = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    error_again, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = reciprocal(d[lane])
    exact_error(x, w, d, inverse, LOW, HIGH, error)
    fit_sums(x, w, inverse, LOW, HIGH, again, squares)
    for lane in range(LANES):
        fitted = again[lane] * reciprocal(squares[lane])
        again[lane] = round_scale(fitted) if abs(fitted) < HALF_LIMIT else d[lane]
        inverse[lane] = reciprocal(again[lane])
    exact_error(x, w, again, inverse, LOW, HIGH, error_again)
    for lane in range(LANES):
        d[lane] = again[lane] if error_again[lane] < error[lane] else d[lane]


@jit
def _store(x: Floats, d: Floats, first: int, packed: Bytes) -> None:
    """Write the tile's blocks as bytes."""
    pairs, inverse = np.empty((HALF_BLOCK, LANES), np.uint8), np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = reciprocal(d[lane])
    for i in range(HALF_BLOCK):
        for lane in range(LANES):
            low = np.int32(code(x[i, lane] * inverse[lane], LOW, HIGH) - LOW)
            high = np.int32(code(x[HALF_BLOCK + i, lane] * inverse[lane], LOW, HIGH) - LOW)
            pairs[i, lane] = np.uint8(low | high << 4)
    for lane in range(min(LANES, packed.shape[0] - first)):
        half = narrow_half(d[lane])
        row = packed[first + lane]
        row[0], row[1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        for i in range(HALF_BLOCK):
            row[2 + i] = pairs[i, lane]


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    half_block = packed.shape[1] - 2
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, 0]) | np.uint32(packed[n, 1]) << np.uint32(8))
        for i in range(half_block):
            pair = packed[n, 2 + i]
            blocks[n, i] = d * np.float32(np.int32(pair & 15) - 8)
            blocks[n, half_block + i] = d * np.float32(np.int32(pair >> 4) - 8)
