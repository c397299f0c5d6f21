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
from .symmetric_fit import LANES, code, exact_error, fit, level
from .tile import (
    SOUND,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    extremes,
    height,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
    spread,
    sum_squares,
    sum_super,
)
from .transpose import SIDE, transpose_8x8

CHUNK = 262144  # elements between two calls of `pack`
TOPS = 24  # room for the tops, three vectors
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
INFINITE = np.float32(np.inf)

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
    count = LANES // symmetric.blocks  # of a tile: there is room for whole tiles
    shape = (min(chunk, -(-len(x) // count) * count), symmetric.blocks)
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
def _fit_blocks(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats, mass: Floats) -> None:
    """Step 1: the scale and the mass of each lane's block."""
    least, most, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    boards = np.zeros((2, 4 * LANES), np.float32)
    extremes(x, least, most)
    for lane in range(LANES):
        inverse[lane] = reciprocal(most[lane] if most[lane] >= -least[lane] else least[lane])
    fit(symmetric.nearest, symmetric.low, symmetric.high, symmetric.grid, x, w, inverse, boards)
    for lane in range(LANES):
        scale[lane], mass[lane] = boards[0, LANES + lane], boards[0, 2 * LANES + lane]


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
    step, inverse, off = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    boards = np.empty((2, 2 * LANES), np.float32)  # rows: error, scale
    best, other = boards[0], boards[1]
    spread(d, size)
    for lane in range(LANES):
        nearest[lane] = code(scale[lane] * reciprocal(size[lane]), symmetric.scale_low, symmetric.scale_high)
    for lane in range(LANES):
        best[lane], best[LANES + lane] = INFINITE, nearest[lane]
    if symmetric.neighbours.shape[0] > 1:  # of one alone the error decides nothing
        for k in symmetric.neighbours:
            for lane in range(LANES):  # loops over few arrays: LLVM vectorises none over many that might overlap
                trial[lane] = min(max(nearest[lane] + k, symmetric.scale_low), symmetric.scale_high)
            for lane in range(LANES):
                step[lane] = size[lane] * trial[lane]
            for lane in range(LANES):
                inverse[lane] = reciprocal(step[lane])
            exact_error(symmetric.nearest, symmetric.low, symmetric.high, x, w, step, inverse, off)
            _keep_smaller(off, trial, best, other)
            best, other = other, best
    for lane in range(LANES):
        scales[lane] = best[LANES + lane]


@jit
def _keep_smaller(error: Floats, scale: Floats, before: Floats, after: Floats) -> None:
    """`after` is `before` where the error is no smaller."""
    for lane in range(LANES):
        least, best, tried = before[lane], before[LANES + lane], scale[lane]
        better = error[lane] < least
        after[lane] = min(least, error[lane])
        best = tried if better else best
        after[LANES + lane] = best


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
    """The levels - low under the final scales, and those, from tile order to super-block order: four codes a word."""
    count = d.shape[0]
    tile, inverse = np.empty((q.shape[2] // 4, LANES), np.uint32), np.empty(LANES, np.float32)
    spread(d, inverse)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * scales[lane])
    _levels(symmetric, x.reshape(-1), inverse, tile)
    for b in range(count):
        halves[first + b] = d[b]
        for j in range(symmetric.blocks):
            integers[first + b, j] = np.int8(np.int32(scales[j * count + b]))
    flat, words = tile.reshape(-1), q.view(np.uint32).reshape(-1)
    n_words = symmetric.blocks * tile.shape[0]  # in a super-block; eight of them lie in one block, or four in two
    apart = 4 * LANES if tile.shape[0] == SIDE else count
    for b in range(0, count, SIDE):
        for k in range(0, n_words, SIDE):
            start = k // tile.shape[0] * count + b
            transpose_8x8(flat, start, start + apart, LANES, words, (first + b) * n_words + k, n_words)


@jit
def _levels(symmetric: Symmetric, x: Floats, inverse: Floats, tile: NDArray[np.uint32]) -> None:
    """The levels - low of four rows of `x` at a time, a byte each, the first one lowest."""
    linear = symmetric.nearest.shape[0] == 0
    for i in range(tile.shape[0]):
        values, row = x[4 * i * LANES : 4 * (i + 1) * LANES], tile[i]
        if linear:
            for lane in range(LANES):
                word = np.uint32(0)
                for k in range(4):
                    found = code(values[k * LANES + lane] * inverse[lane], symmetric.low, symmetric.high)
                    word = _with_byte(word, found - symmetric.low, k)
                row[lane] = word
        else:
            for lane in range(LANES):
                word = np.uint32(0)
                for k in range(4):
                    value = values[k * LANES + lane] * inverse[lane]
                    found = level(symmetric.nearest, value, symmetric.low, symmetric.high)
                    word = _with_byte(word, found - symmetric.low, k)
                row[lane] = word


@jit
def _with_byte(word: np.uint32, value: np.float32, k: int) -> np.uint32:
    """`word` with `value`, 0..255, as its byte `k`, which was 0."""
    changed: np.uint32 = np.uint32(word | np.uint32(np.uint32(np.int32(value)) << np.uint32(8 * k)))
    return changed
