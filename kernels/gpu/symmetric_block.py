"""What Q4_0 and Q5_0 share: 32 weights under one fp16 scale of either sign; the reference, operation by operation.

    weight[i] = d * (shifted[i] + low)

Without importance a program takes a tile, with importance (whose search adds in index order) a block a thread.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import symmetric_block as reference
from .blocks import INFINITY_BITS, flag_blocks, half_bits, is_half_infinity, magnitude_bits, normal_reciprocal
from .row_weights import row_weights
from .search import codes, columns, extremes, fit, half, load_block, out_of_range, pick, reciprocal, signed_extreme

FAINT = tl.constexpr(float(reference.FAINT))


@triton.jit
def encode_largest(x, block, flag, LOW: tl.constexpr):
    """float32[B, 32] -> (d as the bits of fp16, int16[B]; shifted codes int32[B, 32])."""
    column = tl.arange(0, 32)[None, :]
    sizes = magnitude_bits(x)
    bits = tl.max(sizes, axis=1)
    # the first of the largest decides the sign: its column and sign in one number
    place = tl.where(sizes == bits[:, None], column * 2 + (x < 0).to(tl.int32), 64)
    largest = bits.to(tl.float32, bitcast=True)
    d = tl.where((tl.min(place, axis=1) & 1) == 1, largest, -largest) * (-1.0 / LOW)  # a power of two: exact
    half_d = half_bits(d)
    flag_blocks(flag, block, bits >= INFINITY_BITS, bits < 0, is_half_infinity(half_d))
    shifted = (x * normal_reciprocal(d)[:, None] + (0.5 - LOW)).to(tl.int32)
    return half_d, tl.minimum(shifted, -2 * LOW - 1)


@triton.jit
def encode_searched(
    rows,
    flag,
    n_blocks,
    importance,
    mean,
    row_blocks,
    block,
    LOW: tl.constexpr,
    GRID: tl.constexpr,
    N_GRID: tl.constexpr,
    OFFSETS: tl.constexpr,
    N_OFFSETS: tl.constexpr,
    BLEND: tl.constexpr,
):
    """As `encode_largest`, for the blocks int64[R] of `rows`, by the search."""
    HIGH: tl.constexpr = -LOW - 1
    inside = block < n_blocks
    x = load_block(rows + block * 32, inside, 32, 5)
    low, high, finite = extremes(x)
    weight = row_weights(x, importance, mean, block, inside, row_blocks, BLEND, FAINT)
    inverse = reciprocal(signed_extreme(low, high))
    gain = tl.zeros_like(inverse)
    scale, chosen = gain, gain
    for step in range(0, N_GRID + N_OFFSETS):
        g = tl.where(step < N_GRID, pick(GRID, N_GRID, step), chosen + pick(OFFSETS, N_OFFSETS, step - N_GRID))
        fitted, explained = fit(x, weight, g * inverse, LOW, HIGH)
        better = explained > gain
        gain = tl.where(better, explained, gain)
        scale = tl.where(better, fitted, scale)
        chosen = tl.where(better & (step < N_GRID), g, chosen)
    d = half(scale)
    overflow = is_half_infinity(half_bits(d))
    flag_blocks(flag, block, inside & ~finite, inside & out_of_range(low, high), inside & overflow)
    inverse = reciprocal(d)
    shifted = ()
    for i in tl.static_range(0, 32):
        shifted += (codes(x[i] * inverse, LOW, HIGH).to(tl.int32) - LOW,)
    return half_bits(d), columns(shifted, 5)
