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
from .symmetric_fit import LANES, code, fit
from .tile import (
    ONE,
    SOUND,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    extremes,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
)
from .transpose import SIDE, transpose_8x8

BLOCK = 32
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
HALF = np.float32(0.5)
ONE_BIT, FOUR, EIGHT, TWELVE = np.uint32(1), np.uint32(4), np.uint32(8), np.uint32(12)
FIFTEEN, SIXTEEN = np.uint32(15), np.uint32(16)
EVERY_LEVEL = np.empty(0, np.float32)

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]


def encode(symmetric: Symmetric, dtype: DType, rows: Rows, importance: Rows | None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, row_nbytes] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, dtype.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, BLOCK)
    if importance is None:
        answer = _encode_largest(symmetric, blocks, blocks.view(np.uint32), packed.reshape(-1, dtype.nbytes))
    else:
        relative = relative_importance(importance, columns).reshape(-1, BLOCK)
        words = packed.reshape(-1, dtype.nbytes).view(np.uint16)
        answer = _encode_searched(symmetric, blocks, blocks.view(np.uint32), relative, words)
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
def _encode_searched(symmetric: Symmetric, blocks: Floats, bits: Bits, importance: Floats, words: Words) -> int:
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
        _store(symmetric, x, d, first, words)
    return overflowed


@jit
def _fit_blocks(symmetric: Symmetric, x: Floats, w: Floats, scale: Floats) -> None:
    """Step 1: the scale of each lane's block, over the grid and then next to the winner."""
    least, most, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    boards = np.zeros((2, 4 * LANES), np.float32)
    extremes(x, least, most)
    for lane in range(LANES):
        inverse[lane] = reciprocal(most[lane] if most[lane] >= -least[lane] else least[lane])
    fit(EVERY_LEVEL, symmetric.low, symmetric.high, symmetric.grid, x, w, inverse, boards)
    fit(EVERY_LEVEL, symmetric.low, symmetric.high, symmetric.offsets, x, w, inverse, boards)
    for lane in range(LANES):
        scale[lane] = boards[0, LANES + lane]


@jit
def _store(symmetric: Symmetric, x: Floats, d: Floats, first: int, words: Words) -> None:
    """Write the tile's blocks, two bytes at a time: d, the fifth bits where there are such, nibbles."""
    n_words = words.shape[1]
    tile, inverse = np.empty((n_words, LANES), np.uint16), np.empty(LANES, np.float32)
    for lane in range(LANES):
        inverse[lane] = reciprocal(d[lane])
        tile[0, lane] = np.uint16(narrow_half(d[lane]))
    _codes(symmetric, x.reshape(-1), inverse, tile)
    flat, target = tile.reshape(-1), words.reshape(-1)
    for lane in range(0, min(LANES, words.shape[0] - first), SIDE):
        if first + lane + SIDE <= words.shape[0]:  # the first eight words, and the last eight
            at, start = (first + lane) * n_words, (n_words - SIDE) * LANES + lane
            transpose_8x8(flat, lane, lane + 4 * LANES, LANES, target, at, n_words)
            transpose_8x8(flat, start, start + 4 * LANES, LANES, target, at + n_words - SIDE, n_words)
        else:
            for k in range(lane, words.shape[0] - first):
                for i in range(n_words):
                    words[first + k, i] = tile[i, k]


@jit
def _codes(symmetric: Symmetric, x: Floats, inverse: Floats, tile: Words) -> None:
    """The last eight words of each block, four nibbles each, and the two before them where there are such."""
    low, high, n_words = symmetric.low, symmetric.high, tile.shape[0]
    fifths = np.zeros(LANES, np.uint32)
    for i in range(0, BLOCK // 2, 2):
        lower, upper = x[i * LANES : (i + 2) * LANES], x[(i + BLOCK // 2) * LANES : (i + 2 + BLOCK // 2) * LANES]
        row, shift = tile[n_words - BLOCK // 4 + i // 2], np.uint32(i)
        for lane in range(LANES):
            factor = inverse[lane]
            a, b = _shifted(lower[lane] * factor, low, high), _shifted(lower[LANES + lane] * factor, low, high)
            c, e = _shifted(upper[lane] * factor, low, high), _shifted(upper[LANES + lane] * factor, low, high)
            nibbles = np.uint32(a & FIFTEEN) | np.uint32(c & FIFTEEN) << FOUR | np.uint32(b & FIFTEEN) << EIGHT
            row[lane] = np.uint16(nibbles | np.uint32(e & FIFTEEN) << TWELVE)
            fifth = np.uint32(np.uint32(a >> FOUR) | np.uint32(np.uint32(b >> FOUR) << ONE_BIT))
            fifth |= np.uint32(np.uint32(np.uint32(c >> FOUR) | np.uint32(np.uint32(e >> FOUR) << ONE_BIT)) << SIXTEEN)
            fifths[lane] = np.uint32(fifths[lane] | np.uint32(np.uint32(fifth) << shift))
    if n_words > BLOCK // 4 + 1:
        for lane in range(LANES):
            tile[1, lane], tile[2, lane] = np.uint16(fifths[lane]), np.uint16(fifths[lane] >> SIXTEEN)


@jit
def _shifted(value: np.float32, low: np.float32, high: np.float32) -> np.uint32:
    """The code nearest to `value`, counted from `low`."""
    shifted: np.uint32 = np.uint32(np.int32(code(value, low, high) - low))
    return shifted
