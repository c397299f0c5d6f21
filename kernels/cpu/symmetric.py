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
from ..reference.symmetric import FAR, Symmetric
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
TOPS = 32  # room for the tops, four vectors
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
    lanes, supers = np.empty((3, LANES), np.float32), np.empty((2, count), np.float32)
    scale, mass, scales = lanes[0], lanes[1], lanes[2]
    largest, d = supers[0], supers[1]
    overflowed = SOUND
    for first in range(start, min(start + q.shape[0], blocks.shape[0]), count):
        if magnitude_bits(bits, first, min(first + count, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        if importance.shape[0]:
            load_importance(importance, first, w)
        _weights(symmetric, x, w, importance.shape[0] > 0, blocks.shape[1], count)
        _fit_blocks(symmetric, x, w, scale, mass)
        _largest(scale, largest)
        overflowed = _fit_super(symmetric, scale, mass, largest, d, first, overflowed)
        _round_scales(symmetric, x, w, scale, d, scales)
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
                square = x[i, lane] * x[i, lane]
                least = even[lane] if square < FAR * squares[lane] else symmetric.faint * even[lane]
                w[i, lane] = w[i, lane] * np.sqrt(squares[lane] + square) + least
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
def _fit_blocks(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats, mass: Floats) -> None:
    """Step 1: the scale and the mass of each lane's block."""
    inverse, trial = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    cross, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    board = np.zeros(3 * LANES, np.float32)
    extremes(x, cross, squares)
    for lane in range(LANES):
        inverse[lane] = reciprocal(squares[lane] if squares[lane] >= -cross[lane] else cross[lane])
    for g in symmetric.grid:
        for lane in range(LANES):
            trial[lane] = g * inverse[lane]
        _fit_sums(symmetric, x, w, trial, cross, squares)
        _keep_better(cross, squares, board)
    for lane in range(LANES):
        scale[lane], mass[lane] = board[LANES + lane], board[2 * LANES + lane]


@jit
def _keep_better(cross: Floats, squares: Floats, board: Floats) -> None:
    """Rows gain, scale, mass of `board`, where the gain is more.

    Rows of one array, because LLVM vectorises no loop over so many arrays that might overlap.
    """
    for lane in range(LANES):
        gain, scale, mass = board[lane], board[LANES + lane], board[2 * LANES + lane]
        fitted = cross[lane] * reciprocal(squares[lane])
        gained = cross[lane] * fitted
        better = gained > gain
        board[lane] = gained if better else gain
        board[LANES + lane] = fitted if better else scale
        board[2 * LANES + lane] = squares[lane] if better else mass


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
def _fit_super(
    symmetric: Symmetric, scale: Floats, mass: Floats, largest: Floats, d: Floats, first: int, overflowed: int
) -> int:
    """Step 2: the d of each super-block; the first one that even the first top's is too large for."""
    count, n_tops = d.shape[0], symmetric.tops.shape[0]
    board = np.zeros(5 * TOPS, np.float32)  # rows: top; top / largest; sum mass scale k; sum mass k^2, fitted d; gain
    for t in range(n_tops):
        board[t] = symmetric.tops[t]
    for b in range(count):
        inverse = reciprocal(largest[b])
        for t in range(TOPS):
            board[TOPS + t] = board[t] * inverse
            board[2 * TOPS + t] = board[3 * TOPS + t] = ZERO
        for lane in range(b, LANES, count):
            value, weight = scale[lane], mass[lane]
            heavy = weight * value
            for t in range(TOPS):
                k = code(value * board[TOPS + t], symmetric.scale_low, symmetric.scale_high)
                board[2 * TOPS + t] += heavy * k
                board[3 * TOPS + t] += weight * k * k
        for t in range(TOPS):
            fitted = board[2 * TOPS + t] * reciprocal(board[3 * TOPS + t])
            board[4 * TOPS + t] = board[2 * TOPS + t] * fitted
            board[3 * TOPS + t] = fitted
        best, value = ZERO, ZERO
        for t in range(n_tops):
            if board[4 * TOPS + t] > best:
                best, value = board[4 * TOPS + t], board[3 * TOPS + t]
        under_first = largest[b] / symmetric.tops[0]
        if abs(under_first) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = first + b
        d[b] = round_scale(value if value != ZERO and abs(value) < HALF_LIMIT else under_first)
    return overflowed


@jit
def _round_scales(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats, d: Floats, scales: Floats) -> None:
    """Step 3: the best of the integer scale nearest under `d` and its neighbours, for each block."""
    size, nearest, trial = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    step, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    off, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    spread(d, size)
    for lane in range(LANES):
        nearest[lane] = code(scale[lane] * reciprocal(size[lane]), symmetric.scale_low, symmetric.scale_high)
    for lane in range(LANES):
        best[lane], scales[lane] = INFINITE, nearest[lane]
    if symmetric.neighbours.shape[0] == 1:  # only the nearest: its error decides nothing
        return
    for k in symmetric.neighbours:
        for lane in range(LANES):  # three loops: LLVM vectorises none over so many arrays that might overlap
            trial[lane] = min(max(nearest[lane] + k, symmetric.scale_low), symmetric.scale_high)
        for lane in range(LANES):
            step[lane] = size[lane] * trial[lane]
        for lane in range(LANES):
            inverse[lane] = reciprocal(step[lane])
        _exact_error(symmetric, x, w, step, inverse, off)
        for lane in range(LANES):
            better = off[lane] < best[lane]
            best[lane] = off[lane] if better else best[lane]
            scales[lane] = trial[lane] if better else scales[lane]


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
