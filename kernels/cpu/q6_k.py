"""Q6_K, compiled: the reference's search on 8 super-blocks at once, a block of 16 in each of 128 lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q6_K as DTYPE
from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..reference.q6_k import BLEND, GRID, NEIGHBOURS, TOP
from ..scheme import Packed, Rows
from .half import HALF_LIMIT, narrow_half, round_scale, widen_half
from .jit import jit
from .tile import (
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
    spread,
    sum_squares,
    sum_super,
)

__all__ = ["DTYPE", "decode", "encode"]

BLOCK, BLOCKS, COUNT = 16, 16, 8
LANES = BLOCKS * COUNT
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
ELEMENTS = np.float32(DTYPE.block)
LOW, HIGH, SCALE_LOW, SCALE_HIGH = np.float32(-32), np.float32(31), np.float32(-128), np.float32(127)
INFINITE = np.float32(np.inf)

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 210] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    evened = np.empty((0, DTYPE.block), np.float32)
    if importance is not None:
        evened = (relative_importance(importance, columns) + BLEND).reshape(-1, DTYPE.block)
    answer = _encode(blocks, blocks.view(np.uint32), evened, packed.reshape(-1, DTYPE.nbytes))
    if answer == VALUE_REFUSED:
        refuse_values(rows, SEARCH_LIMIT)
    elif answer != SOUND:
        refuse_scale(answer, columns, DTYPE.block)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 210] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode(blocks: Floats, bits: Bits, importance: Floats, packed: Bytes) -> int:
    x, w, q = (
        np.empty((BLOCK, LANES), np.float32),
        np.empty((BLOCK, LANES), np.float32),
        np.empty((BLOCK, LANES), np.uint8),
    )
    scale, scales, tried, near = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    d, d_tried, error, error_tried = (
        np.empty(COUNT, np.float32),
        np.empty(COUNT, np.float32),
        np.empty(COUNT, np.float32),
        np.empty(COUNT, np.float32),
    )
    largest = np.empty(COUNT, np.float32)
    overflowed = SOUND
    for first in range(0, blocks.shape[0], COUNT):
        if magnitude_bits(bits, first, min(first + COUNT, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        if importance.shape[0]:
            load_importance(importance, first, w)
        else:
            _plain_weights(x, w)
        _fit_blocks(x, w, scale)
        _largest(scale, largest)
        error[:] = INFINITE
        for attempt in range(2):
            if attempt == 0:
                overflowed = _under_top(scale, largest, d_tried, near, first, overflowed)
            else:
                _fit_super(x, w, d, scales, d_tried)
                for lane in range(LANES):
                    near[lane] = scales[lane]
            _round_scales(x, w, near, d_tried, tried, error_tried)
            _keep_less(error_tried, d_tried, tried, error, d, scales)
        _final_codes(x, d, scales, q)
        _store(q, scales, d, first, packed)
    return overflowed


@jit
def _plain_weights(x: Floats, w: Floats) -> None:
    """x^2 + BLEND * mean(x^2)."""
    squares, even = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums = np.empty(COUNT, np.float32)
    sum_squares(x, squares)
    sum_super(squares, sums)
    for b in range(COUNT):
        sums[b] = BLEND * (sums[b] / ELEMENTS)
    spread(sums, even)
    for i in range(BLOCK):
        for lane in range(LANES):
            w[i, lane] = x[i, lane] * x[i, lane] + even[lane]


@jit
def _fit_blocks(x: Floats, w: Floats, scale: Floats) -> None:
    """Step 1: the scale of each lane's block."""
    inverse, trial, best, cross = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    squares = np.empty(LANES, np.float32)
    extremes(x, cross, squares)
    for lane in range(LANES):
        inverse[lane] = reciprocal(squares[lane] if squares[lane] >= -cross[lane] else cross[lane])
        best[lane] = scale[lane] = ZERO
    for g in GRID:
        for lane in range(LANES):
            trial[lane] = g * inverse[lane]
        fit_sums(x, w, trial, LOW, HIGH, cross, squares)
        for lane in range(LANES):
            fitted = cross[lane] * reciprocal(squares[lane])
            gain = cross[lane] * fitted
            better = gain > best[lane]
            best[lane] = gain if better else best[lane]
            scale[lane] = fitted if better else scale[lane]


@jit
def _largest(scale: Floats, largest: Floats) -> None:
    """The block scale of largest magnitude of each super-block, the positive one of two alike."""
    for b in range(COUNT):
        low = high = scale[b]
        for j in range(1, BLOCKS):
            low, high = min(low, scale[j * COUNT + b]), max(high, scale[j * COUNT + b])
        largest[b] = high if high >= -low else low


@jit
def _under_top(scale: Floats, largest: Floats, d: Floats, near: Floats, first: int, overflowed: int) -> int:
    """The d that puts the largest block scale on -128, and the scales nearest under it."""
    for b in range(COUNT):
        top = largest[b] / TOP
        if abs(top) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = first + b
        d[b] = round_scale(top)
    spread(d, near)
    for lane in range(LANES):
        near[lane] = code(scale[lane] * reciprocal(near[lane]), SCALE_LOW, SCALE_HIGH)
    return overflowed


@jit
def _round_scales(x: Floats, w: Floats, near: Floats, d: Floats, scales: Floats, error: Floats) -> None:
    """Step 2: the best of `near` and its neighbours for each block, and each super-block's error."""
    size, step, best, trial = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    off, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    spread(d, size)
    best[:] = INFINITE
    scales[:] = ZERO
    for k in NEIGHBOURS:
        for lane in range(LANES):
            trial[lane] = min(max(near[lane] + k, SCALE_LOW), SCALE_HIGH)
            step[lane] = size[lane] * trial[lane]
            inverse[lane] = reciprocal(step[lane])
        exact_error(x, w, step, inverse, LOW, HIGH, off)
        for lane in range(LANES):
            better = off[lane] < best[lane]
            best[lane] = off[lane] if better else best[lane]
            scales[lane] = trial[lane] if better else scales[lane]
    sum_super(best, error)


@jit
def _fit_super(x: Floats, w: Floats, d: Floats, scales: Floats, fitted: Floats) -> None:
    """Step 3: the d that fits best to the codes under `d` and `scales`."""
    inverse, cross, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    top, bottom = np.empty(COUNT, np.float32), np.empty(COUNT, np.float32)
    spread(d, inverse)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * scales[lane])
    fit_sums(x, w, inverse, LOW, HIGH, cross, squares)
    for lane in range(LANES):
        cross[lane] = scales[lane] * cross[lane]
        squares[lane] = scales[lane] * scales[lane] * squares[lane]
    sum_super(cross, top)
    sum_super(squares, bottom)
    for b in range(COUNT):
        value = top[b] * reciprocal(bottom[b])
        fitted[b] = round_scale(value) if value != ZERO and abs(value) < HALF_LIMIT else d[b]


@jit
def _keep_less(
    error_tried: Floats, d_tried: Floats, scales_tried: Floats, error: Floats, d: Floats, scales: Floats
) -> None:
    """Take over the tried solution of each super-block where its error is less."""
    for b in range(COUNT):
        if error_tried[b] < error[b]:
            error[b], d[b] = error_tried[b], d_tried[b]
            for j in range(BLOCKS):
                scales[j * COUNT + b] = scales_tried[j * COUNT + b]


@jit
def _final_codes(x: Floats, d: Floats, scales: Floats, q: Bytes) -> None:
    """Codes + 32 under the final scales."""
    inverse = np.empty(LANES, np.float32)
    spread(d, inverse)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * scales[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            q[i, lane] = np.uint8(np.int32(code(x[i, lane] * inverse[lane], LOW, HIGH) - LOW))


@jit
def _store(q: Bytes, scales: Floats, d: Floats, first: int, packed: Bytes) -> None:
    """Write the tile's super-blocks as bytes."""
    for b in range(min(COUNT, packed.shape[0] - first)):
        row = packed[first + b]
        for h in range(2):
            for s in range(2):
                lane = (8 * h + s) * COUNT + b
                for i in range(BLOCK):
                    c0, c1 = q[i, lane], q[i, lane + 2 * COUNT]
                    c2, c3 = q[i, lane + 4 * COUNT], q[i, lane + 6 * COUNT]
                    at = 16 * s + i
                    row[64 * h + at] = (c0 & 15) | (c2 & 15) << 4
                    row[64 * h + 32 + at] = (c1 & 15) | (c3 & 15) << 4
                    row[128 + 32 * h + at] = c0 >> 4 | (c1 >> 4) << 2 | (c2 >> 4) << 4 | (c3 >> 4) << 6
        for j in range(BLOCKS):
            row[192 + j] = np.uint8(np.int32(scales[j * COUNT + b]) & 255)
        bits = narrow_half(d[b])
        row[208], row[209] = np.uint8(bits & np.uint32(255)), np.uint8(bits >> np.uint32(8))


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[208]) | np.uint32(row[209]) << np.uint32(8))
        for h in range(2):
            for k in range(4):
                for s in range(2):
                    step = d * np.float32(np.int8(row[192 + 8 * h + 2 * k + s]))
                    for i in range(BLOCK):
                        low = row[64 * h + 32 * (k & 1) + 16 * s + i] >> (4 * (k >> 1)) & 15
                        high = row[128 + 32 * h + 16 * s + i] >> (2 * k) & 3
                        blocks[n, 128 * h + 32 * k + 16 * s + i] = step * np.float32(np.int32(low | high << 4) - 32)
