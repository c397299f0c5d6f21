"""reference/affine_block.py, compiled once for Q4_1 and Q5_1.

Without importance a block at a time; with importance 64 blocks at once, each in a lane of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import DType
from ..reference.affine import Affine
from ..reference.checks import SEARCH_LIMIT, refuse_non_finite, refuse_scale, refuse_values, relative_importance
from ..reference.q8_0 import FP32_MIN
from ..scheme import Packed, Rows
from .affine import fit_blocks
from .affine_sums import LANES, centre, code_sums, exact_error
from .fifth_bits import write_codes
from .half import HALF_LIMIT, INFINITY, MAGNITUDE, narrow_half, round_scale, widen_half
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
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
)

BLOCK = 32
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
HALF = np.float32(0.5)

Bytes = NDArray[np.uint8]


def encode(affine: Affine, dtype: DType, rows: Rows, importance: Rows | None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, row_nbytes] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, dtype.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, BLOCK)
    if importance is None:
        answer = _encode_between(affine, blocks, blocks.view(np.int32), packed.reshape(-1, dtype.nbytes))
    else:
        relative = relative_importance(importance, columns).reshape(-1, BLOCK)
        bits = blocks.view(np.uint32)
        answer = _encode_searched(affine, blocks, bits, relative, packed.reshape(-1, dtype.nbytes))
    if answer == VALUE_REFUSED and importance is None:
        refuse_non_finite(rows)
    elif answer == VALUE_REFUSED:
        refuse_values(rows, SEARCH_LIMIT)
    elif answer != SOUND:
        refuse_scale(answer, columns, BLOCK)
    return packed


@jit
def _ordered(bits: np.int32) -> np.int32:
    """float32 bits <-> an integer of the same order: -0 lies just below 0, NaN outside the infinities."""
    ordered: np.int32 = np.int32(bits ^ np.int32(np.int32(bits >> 31) & np.int32(0x7FFFFFFF)))
    return ordered


@jit
def _encode_between(affine: Affine, blocks: Floats, bits: NDArray[np.int32], packed: Bytes) -> int:
    overflowed = SOUND
    q = np.empty(blocks.shape[1], np.uint8)
    top = np.int32(affine.top)
    n_pairs = blocks.shape[1] // 2  # not a constant: LLVM would unroll the loops instead of vectorising them
    for n in range(blocks.shape[0]):
        least = most = _ordered(bits[n, 0])
        for i in range(blocks.shape[1]):
            least, most = min(least, _ordered(bits[n, i])), max(most, _ordered(bits[n, i]))
        low, high = _ordered(least), _ordered(most)
        if max(np.uint32(low) & MAGNITUDE, np.uint32(high) & MAGNITUDE) >= INFINITY:
            return VALUE_REFUSED
        m = np.uint32(low).view(np.float32)
        m = _first_zero(blocks[n]) if m == ZERO else m
        d = (np.uint32(high).view(np.float32) - m + ZERO) / affine.top
        if max(d, abs(m)) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = n
        inverse = ONE / d if d >= FP32_MIN else ZERO
        _write_halves(d, m, packed[n])
        if packed.shape[1] == 20:  # nibbles alone: straight to their bytes is half as fast again
            for i in range(n_pairs):
                below_16 = min(np.int32((blocks[n, i] - m) * inverse + HALF), top)
                from_16 = min(np.int32((blocks[n, n_pairs + i] - m) * inverse + HALF), top)
                packed[n, 4 + i] = np.uint8(below_16 | from_16 << 4)
        else:
            for i in range(blocks.shape[1]):
                q[i] = np.uint8(min(np.int32((blocks[n, i] - m) * inverse + HALF), top))
            write_codes(q, packed[n], 4)
    return overflowed


@jit
def _first_zero(block: Floats) -> np.float32:
    """The first zero of a block that has one, with its sign."""
    zero: np.float32 = block[0]
    for i in range(block.shape[0] - 1, -1, -1):
        zero = block[i] if block[i] == ZERO else zero
    return zero


@jit
def _write_halves(d: np.float32, m: np.float32, block: Bytes) -> None:
    scale, low = narrow_half(d), narrow_half(m)
    block[0], block[1] = np.uint8(scale & np.uint32(255)), np.uint8(scale >> np.uint32(8))
    block[2], block[3] = np.uint8(low & np.uint32(255)), np.uint8(low >> np.uint32(8))


@jit
def _encode_searched(affine: Affine, blocks: Floats, bits: Bits, importance: Floats, packed: Bytes) -> int:
    shape = (BLOCK, LANES)
    x, w, centred = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    fit, fixed = np.empty((2, LANES), np.float32), np.empty((3, LANES), np.float32)
    means = np.empty(blocks.shape[0] // max(importance.shape[0], 1), np.float32)
    row_means(blocks, importance.shape[0], means)
    overflowed = SOUND
    for first in range(0, blocks.shape[0], LANES):
        if magnitude_bits(bits, first, min(first + LANES, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        load_importance(importance, first, w)
        row_weights(x, w, means, first, importance.shape[0], affine.blend, ONE)
        centre(x, w, fixed, centred)
        fit_blocks(affine, x, w, centred, fixed, fit)
        for lane in range(LANES):
            if max(fit[0, lane], abs(fit[1, lane])) >= HALF_LIMIT and overflowed == SOUND:
                overflowed = first + lane
            fit[0, lane] = round_scale(fit[0, lane])
            fit[1, lane] = widen_half(narrow_half(fit[1, lane]))
        _fit_again(affine, x, w, centred, fixed, fit)
        _store(affine, x, fit, first, packed)
    return overflowed


@jit
def _fit_again(affine: Affine, x: Floats, w: Floats, centred: Floats, fixed: Floats, fit: Floats) -> None:
    """Step 2: fit once more to the codes under the fp16 d and m; the two of less exact error stay."""
    inverse, under, error = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    again, error_again = np.empty((2, LANES), np.float32), np.empty(LANES, np.float32)
    sums = np.empty((3, LANES), np.float32)
    for lane in range(LANES):
        inverse[lane], under[lane] = reciprocal(fit[0, lane]), -fit[1, lane]
    exact_error(x, w, fit[0], inverse, under, affine.top, error)
    code_sums(x, w, centred, fit[1], inverse, affine.top, sums)
    for lane in range(LANES):
        mean_q = sums[0, lane] * fixed[1, lane]
        scale = sums[2, lane] * reciprocal(sums[1, lane] - sums[0, lane] * mean_q)
        low = fixed[2, lane] - scale * mean_q
        again[0, lane] = round_scale(scale) if ZERO < scale < HALF_LIMIT else fit[0, lane]
        again[1, lane] = widen_half(narrow_half(low)) if abs(low) < HALF_LIMIT else fit[1, lane]
        inverse[lane], under[lane] = reciprocal(again[0, lane]), -again[1, lane]
    exact_error(x, w, again[0], inverse, under, affine.top, error_again)
    for lane in range(LANES):
        better = error_again[lane] < error[lane]
        fit[0, lane] = again[0, lane] if better else fit[0, lane]
        fit[1, lane] = again[1, lane] if better else fit[1, lane]


@jit
def _store(affine: Affine, x: Floats, fit: Floats, first: int, packed: Bytes) -> None:
    """Write the tile's blocks as bytes."""
    tile, inverse, q = np.empty((BLOCK, LANES), np.uint8), np.empty(LANES, np.float32), np.empty(BLOCK, np.uint8)
    for lane in range(LANES):
        inverse[lane] = reciprocal(fit[0, lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            tile[i, lane] = np.uint8(np.int32(code((x[i, lane] - fit[1, lane]) * inverse[lane], ZERO, affine.top)))
    for lane in range(min(LANES, packed.shape[0] - first)):
        _write_halves(fit[0, lane], fit[1, lane], packed[first + lane])
        for i in range(BLOCK):
            q[i] = tile[i, lane]
        write_codes(q, packed[first + lane], 4)
