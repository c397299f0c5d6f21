"""The search of reference/symmetric.py, compiled once for all its formats: 128 blocks at once, each in a lane of its own.

A format's constants come in a `Symmetric`, its shape with them, so that nothing is compiled anew for another format. The
codes leave in chunks that stay in the processor's cache until they are packed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...dtypes import DType
from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..reference.symmetric import Symmetric
from ..scheme import Packed, Rows
from .half import HALF_LIMIT, round_scale
from .jit import jit
from .tile import (
    SOUND,
    STEP,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    code,
    exact_error,
    extremes,
    fit_sums,
    height,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
    spread,
    sum_squares,
    sum_super,
)

LANES = 128  # constant, so that LLVM vectorises loops over lanes without a remainder
CHUNK = 262144  # elements between two calls of `pack`
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
INFINITE, TWO = np.float32(np.inf), np.float32(2)

Bytes = NDArray[np.uint8]
Pack = Callable[[Floats, Bytes, NDArray[np.int8]], Packed]


def encode(symmetric: Symmetric, dtype: DType, pack: Pack, rows: Rows, importance: Rows | None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, row_nbytes] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, dtype.row_nbytes(columns)), np.uint8)
    supers = packed.reshape(-1, dtype.nbytes)
    x = np.ascontiguousarray(rows).reshape(-1, dtype.block)
    relative = np.empty((0, dtype.block), np.float32)
    if importance is not None:
        relative = relative_importance(importance, columns).reshape(-1, dtype.block)
    chunk = CHUNK // dtype.block
    shape = (min(chunk, len(x)), symmetric.blocks)
    q = np.empty((*shape, dtype.block // symmetric.blocks), np.uint8)
    scales, d = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
    overflowed = SOUND
    for first in range(0, len(x), chunk):
        answer = _search(symmetric, x, x.view(np.uint32), relative, first, d, scales, q)
        if answer == VALUE_REFUSED:
            refuse_values(rows, SEARCH_LIMIT)
        overflowed = answer if overflowed == SOUND else overflowed
        end = min(chunk, len(x) - first)
        supers[first : first + end] = pack(d[:end], q[:end], scales[:end])
    if overflowed != SOUND:
        refuse_scale(overflowed, columns, dtype.block)
    return packed


@jit
def _search(
    symmetric: Symmetric,
    blocks: Floats,
    bits: Bits,
    importance: Floats,
    start: int,
    halves: Floats,
    integers: NDArray[np.int8],
    q: Bytes,
) -> int:
    """The super-blocks from `start` on that `q` has room for: d, scales, levels - low."""
    count = LANES // symmetric.blocks  # super-blocks in a tile
    x, w = np.empty((q.shape[2], LANES), np.float32), np.empty((q.shape[2], LANES), np.float32)
    lanes, supers = np.empty((4, LANES), np.float32), np.empty((5, count), np.float32)
    scale, scales, tried, near = lanes[0], lanes[1], lanes[2], lanes[3]
    d, d_tried, error, error_tried, largest = supers[0], supers[1], supers[2], supers[3], supers[4]
    overflowed = SOUND
    for first in range(start, min(start + q.shape[0], blocks.shape[0]), count):
        if magnitude_bits(bits, first, min(first + count, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        if importance.shape[0]:
            load_importance(importance, first, w)
        _weights(symmetric, x, w, importance.shape[0] > 0, blocks.shape[1], count)
        _fit_blocks(symmetric, x, w, scale)
        _largest(scale, largest)
        error[:] = INFINITE
        for k in range(2 * symmetric.tops.shape[0]):
            if k % 2 == 0:
                overflowed = _under_top(symmetric, k // 2, scale, largest, d_tried, near, first, overflowed)
            else:
                _fit_super(symmetric, x, w, tried, d_tried)
                for lane in range(LANES):
                    near[lane] = tried[lane]
            _round_scales(symmetric, x, w, near, d_tried, tried, error_tried)
            _keep_less(error_tried, d_tried, tried, error, d, scales)
        _store(symmetric, x, d, scales, first - start, halves, integers, q)
    return overflowed


@jit
def _weights(symmetric: Symmetric, x: Floats, w: Floats, weighted: bool, elements: int, count: int) -> None:
    """The reference's weights, in place of the importance in `w` where there is one."""
    squares, even, sums = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(count, np.float32)
    sum_squares(x, squares)
    sum_super(squares, sums)
    spread(sums, squares)
    if not weighted:
        for lane in range(LANES):
            even[lane] = symmetric.even * (squares[lane] / np.float32(elements))
        for i in range(height(x)):
            for lane in range(LANES):
                w[i, lane] = x[i, lane] * x[i, lane] + even[lane]
    elif symmetric.rooted:
        for lane in range(LANES):
            squares[lane] = squares[lane] / np.float32(elements // 2)
            even[lane] = symmetric.blend * np.sqrt(squares[lane])
        for i in range(height(x)):
            for lane in range(LANES):
                w[i, lane] = w[i, lane] * np.sqrt(squares[lane] + x[i, lane] * x[i, lane]) + even[lane]
    else:
        for i in range(height(x)):
            for lane in range(LANES):
                w[i, lane] = w[i, lane] + symmetric.blend


@jit
def _fit_sums(symmetric: Symmetric, x: Floats, w: Floats, inverse: Floats, cross: Floats, squares: Floats) -> None:
    """For q = the level nearest to x * inverse: cross[lane] = sum w x q, squares[lane] = sum w q q."""
    if symmetric.nearest.shape[0] == 0:
        fit_sums(x, w, inverse, symmetric.low, symmetric.high, cross, squares)
        return
    cross[:] = ZERO
    squares[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            c, s = cross[lane], squares[lane]
            for k in range(STEP):
                value = x[i + k, lane]
                q = _level(symmetric.nearest, value * inverse[lane], symmetric.low, symmetric.high)
                wq = w[i + k, lane] * q
                c += wq * value
                s += wq * q
            cross[lane], squares[lane] = c, s


@jit
def _exact_error(symmetric: Symmetric, x: Floats, w: Floats, step: Floats, inverse: Floats, error: Floats) -> None:
    """error[lane] = sum w (step * q - x)^2 for q = the level nearest to x * inverse, where inverse = reciprocal(step)."""
    if symmetric.nearest.shape[0] == 0:
        exact_error(x, w, step, inverse, symmetric.low, symmetric.high, error)
        return
    error[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            e = error[lane]
            for k in range(STEP):
                value = x[i + k, lane]
                q = _level(symmetric.nearest, value * inverse[lane], symmetric.low, symmetric.high)
                off = step[lane] * q - value
                e += w[i + k, lane] * off * off
            error[lane] = e


@jit
def _level(nearest: Floats, value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Clamp, then look up; the index is unsigned, which spares numba's test for a negative one."""
    clamped = min(max(value, low), high)
    level: np.float32 = nearest[np.uint32(np.int32((clamped - low) * TWO))]
    return level


@jit
def _fit_blocks(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats) -> None:
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
    for g in symmetric.grid:
        for lane in range(LANES):
            trial[lane] = g * inverse[lane]
        _fit_sums(symmetric, x, w, trial, cross, squares)
        for lane in range(LANES):
            fitted = cross[lane] * reciprocal(squares[lane])
            gain = cross[lane] * fitted
            better = gain > best[lane]
            best[lane] = gain if better else best[lane]
            scale[lane] = fitted if better else scale[lane]


@jit
def _largest(scale: Floats, largest: Floats) -> None:
    """The block scale of largest magnitude of each super-block, the positive one of two alike."""
    count = largest.shape[0]
    for b in range(count):
        low = high = scale[b]
        for j in range(1, LANES // count):
            low, high = min(low, scale[j * count + b]), max(high, scale[j * count + b])
        largest[b] = high if high >= -low else low


@jit
def _under_top(
    symmetric: Symmetric,
    k: int,
    scale: Floats,
    largest: Floats,
    d: Floats,
    near: Floats,
    first: int,
    overflowed: int,
) -> int:
    """The d that puts the largest block scale on top number k, and the scales nearest under it."""
    for b in range(d.shape[0]):
        value, under_first = largest[b] / symmetric.tops[k], largest[b] / symmetric.tops[0]
        if abs(under_first) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = first + b
        d[b] = round_scale(value if abs(value) < HALF_LIMIT else under_first)
    spread(d, near)
    for lane in range(LANES):
        near[lane] = code(scale[lane] * reciprocal(near[lane]), symmetric.scale_low, symmetric.scale_high)
    return overflowed


@jit
def _round_scales(
    symmetric: Symmetric, x: Floats, w: Floats, near: Floats, d: Floats, scales: Floats, error: Floats
) -> None:
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
    for k in symmetric.neighbours:
        for lane in range(LANES):
            trial[lane] = min(max(near[lane] + k, symmetric.scale_low), symmetric.scale_high)
            step[lane] = size[lane] * trial[lane]
            inverse[lane] = reciprocal(step[lane])
        _exact_error(symmetric, x, w, step, inverse, off)
        for lane in range(LANES):
            better = off[lane] < best[lane]
            best[lane] = off[lane] if better else best[lane]
            scales[lane] = trial[lane] if better else scales[lane]
    sum_super(best, error)


@jit
def _fit_super(symmetric: Symmetric, x: Floats, w: Floats, scales: Floats, d: Floats) -> None:
    """Step 3: the d that fits best to the levels under the d that was and `scales`, in its place."""
    inverse, cross, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    top, bottom = np.empty(d.shape[0], np.float32), np.empty(d.shape[0], np.float32)
    spread(d, inverse)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * scales[lane])
    _fit_sums(symmetric, x, w, inverse, cross, squares)
    for lane in range(LANES):
        cross[lane] = scales[lane] * cross[lane]
        squares[lane] = scales[lane] * scales[lane] * squares[lane]
    sum_super(cross, top)
    sum_super(squares, bottom)
    for b in range(d.shape[0]):
        value = top[b] * reciprocal(bottom[b])
        d[b] = round_scale(value) if value != ZERO and abs(value) < HALF_LIMIT else d[b]


@jit
def _keep_less(
    error_tried: Floats, d_tried: Floats, scales_tried: Floats, error: Floats, d: Floats, scales: Floats
) -> None:
    """Take over the tried solution of each super-block where its error is less."""
    for b in range(d.shape[0]):
        if error_tried[b] < error[b]:
            error[b], d[b] = error_tried[b], d_tried[b]
            for lane in range(b, LANES, d.shape[0]):
                scales[lane] = scales_tried[lane]


@jit
def _store(
    symmetric: Symmetric,
    x: Floats,
    d: Floats,
    scales: Floats,
    first: int,
    halves: Floats,
    integers: NDArray[np.int8],
    q: Bytes,
) -> None:
    """The levels - low under the final scales, and those, from tile order to super-block order."""
    count = d.shape[0]
    tile, inverse = np.empty((q.shape[2], LANES), np.uint8), np.empty(LANES, np.float32)
    spread(d, inverse)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * scales[lane])
    linear = symmetric.nearest.shape[0] == 0
    for i in range(height(x)):
        for lane in range(LANES):
            value = x[i, lane] * inverse[lane]
            if linear:
                level = code(value, symmetric.low, symmetric.high)
            else:
                level = _level(symmetric.nearest, value, symmetric.low, symmetric.high)
            tile[i, lane] = np.uint8(np.int32(level - symmetric.low))
    for b in range(min(count, q.shape[0] - first)):
        halves[first + b] = d[b]
        for j in range(symmetric.blocks):
            lane = j * count + b
            integers[first + b, j] = np.int8(np.int32(scales[lane]))
            for i in range(height(x)):
                q[first + b, j, i] = tile[i, lane]
