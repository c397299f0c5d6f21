"""reference/symmetric_block.py, compiled once for Q4_0 and Q5_0.

Without importance a block at a time; with importance 128 blocks at once, each in a lane of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import DType
from ..reference.checks import SEARCH_LIMIT, refuse_non_finite, refuse_scale, refuse_values, relative_importance
from ..reference.q8_0 import FP32_MIN
from ..reference.symmetric_block import FAINT, Symmetric
from ..scheme import Packed, Rows
from .fifth_bits import write_codes
from .half import HALF_LIMIT, INFINITY, MAGNITUDE, SIGN, narrow_half, round_scale
from .jit import jit
from .row_weights import row_means, row_weights
from .tile import (
    ONE,
    SOUND,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    code,
    extremes,
    fit_sums,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
)

BLOCK, LANES = 32, 128
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
HALF = np.float32(0.5)

Bytes = NDArray[np.uint8]


def encode(symmetric: Symmetric, dtype: DType, rows: Rows, importance: Rows | None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, row_nbytes] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, dtype.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, BLOCK)
    if importance is None:
        answer = _encode_largest(symmetric, blocks, blocks.view(np.uint32), packed.reshape(-1, dtype.nbytes))
    else:
        relative = relative_importance(importance, columns).reshape(-1, BLOCK)
        bits = blocks.view(np.uint32)
        answer = _encode_searched(symmetric, blocks, bits, relative, packed.reshape(-1, dtype.nbytes))
    if answer == VALUE_REFUSED and importance is None:
        refuse_non_finite(rows)
    elif answer == VALUE_REFUSED:
        refuse_values(rows, SEARCH_LIMIT)
    elif answer != SOUND:
        refuse_scale(answer, columns, BLOCK)
    return packed


@jit
def _encode_largest(symmetric: Symmetric, blocks: Floats, bits: Bits, packed: Bytes) -> int:
    overflowed = SOUND
    middle, top = HALF - symmetric.low, np.int32(symmetric.high - symmetric.low)
    q = np.empty(blocks.shape[1], np.uint8)
    n_pairs = blocks.shape[1] // 2  # not a constant: LLVM would unroll the loops instead of vectorising them
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
        d = extreme / symmetric.low
        if abs(d) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = n
        inverse = ONE / d if abs(d) >= FP32_MIN else ZERO
        half = narrow_half(d)
        packed[n, 0], packed[n, 1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        if packed.shape[1] == 18:  # nibbles alone: straight to their bytes is half as fast again
            for i in range(n_pairs):
                below_16 = min(np.int32(blocks[n, i] * inverse + middle), top)
                from_16 = min(np.int32(blocks[n, n_pairs + i] * inverse + middle), top)
                packed[n, 2 + i] = np.uint8(below_16 | from_16 << 4)
        else:
            for i in range(blocks.shape[1]):
                q[i] = np.uint8(min(np.int32(blocks[n, i] * inverse + middle), top))
            write_codes(q, packed[n], 2)
    return overflowed


@jit
def _negative_first(bits: Bits, magnitude: np.uint32) -> bool:
    """Whether the first of several elements of the same, not zero, largest magnitude is negative."""
    for i in range(bits.shape[0]):
        if np.uint32(bits[i] & MAGNITUDE) == magnitude:
            return bool(magnitude != np.uint32(0) and bits[i] != magnitude)
    return False


@jit
def _encode_searched(symmetric: Symmetric, blocks: Floats, bits: Bits, importance: Floats, packed: Bytes) -> int:
    x, w = np.empty((BLOCK, LANES), np.float32), np.empty((BLOCK, LANES), np.float32)
    scale, d = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    means = np.empty(blocks.shape[0] // max(importance.shape[0], 1), np.float32)
    row_means(blocks, importance.shape[0], means)
    overflowed = SOUND
    for first in range(0, blocks.shape[0], LANES):
        if magnitude_bits(bits, first, min(first + LANES, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        load_importance(importance, first, w)
        row_weights(x, w, means, first, importance.shape[0], symmetric.blend, FAINT)
        _fit_blocks(symmetric, x, w, scale)
        for lane in range(LANES):
            if abs(scale[lane]) >= HALF_LIMIT and overflowed == SOUND:
                overflowed = first + lane
            d[lane] = round_scale(scale[lane])
        _store(symmetric, x, d, first, packed)
    return overflowed


@jit
def _fit_blocks(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats) -> None:
    """Step 1: the scale of each lane's block, over the grid and then next to the winner."""
    inverse, trial, centre = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.zeros(LANES, np.float32)
    cross, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    board = np.zeros(3 * LANES, np.float32)
    extremes(x, cross, squares)
    for lane in range(LANES):
        inverse[lane] = reciprocal(squares[lane] if squares[lane] >= -cross[lane] else cross[lane])
    n_grid = symmetric.grid.shape[0]
    for attempt in range(n_grid + symmetric.offsets.shape[0]):
        g = symmetric.grid[attempt] if attempt < n_grid else symmetric.offsets[attempt - n_grid]
        if attempt == n_grid:
            for lane in range(LANES):
                centre[lane] = board[2 * LANES + lane]
        for lane in range(LANES):
            trial[lane] = (centre[lane] + g) * inverse[lane]
        fit_sums(x, w, trial, symmetric.low, symmetric.high, cross, squares)
        _keep_better(cross, squares, g, board)
    for lane in range(LANES):
        scale[lane] = board[LANES + lane]


@jit
def _keep_better(cross: Floats, squares: Floats, g: np.float32, board: Floats) -> None:
    """Rows gain, scale, g of `board`, where the gain is more.

    Rows of one array, because LLVM vectorises no loop over so many arrays that might overlap.
    """
    for lane in range(LANES):
        gain, scale, chosen = board[lane], board[LANES + lane], board[2 * LANES + lane]
        fitted = cross[lane] * reciprocal(squares[lane])
        gained = cross[lane] * fitted
        better = gained > gain
        board[lane] = gained if better else gain
        board[LANES + lane] = fitted if better else scale
        board[2 * LANES + lane] = g if better else chosen


@jit
def _store(symmetric: Symmetric, x: Floats, d: Floats, first: int, packed: Bytes) -> None:
    """Write the tile's blocks as bytes."""
    tile, inverse, q = np.empty((BLOCK, LANES), np.uint8), np.empty(LANES, np.float32), np.empty(BLOCK, np.uint8)
    for lane in range(LANES):
        inverse[lane] = reciprocal(d[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            rounded = code(x[i, lane] * inverse[lane], symmetric.low, symmetric.high)
            tile[i, lane] = np.uint8(np.int32(rounded - symmetric.low))
    for lane in range(min(LANES, packed.shape[0] - first)):
        half = narrow_half(d[lane])
        block = packed[first + lane]
        block[0], block[1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        for i in range(BLOCK):
            q[i] = tile[i, lane]
        write_codes(q, block, 2)
