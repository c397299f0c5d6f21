"""What Q4_1 and Q5_1 share: 32 weights under an fp16 scale and an fp16 low end; the reference, operation by operation.

    weight[i] = d * code[i] + m

Without importance a program takes a tile, with importance (whose search adds in index order) a block a thread.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import INFINITY_BITS, flag_blocks, half_bits, is_half_infinity, magnitude_bits, normal_reciprocal
from .row_weights import row_weights
from .search import HALF_OVERFLOW, codes, columns, extremes, half_or, load_block, out_of_range, pick, reciprocal


@triton.jit
def encode_between(x, block, flag, TOP: tl.constexpr):
    """float32[B, 32] -> (d and m in one word, as the file has them, int32[B]; codes int32[B, 32])."""
    low = tl.min(x, axis=1)
    high = tl.max(x, axis=1)
    # m is the first of the least: of two zeros it keeps that one's sign
    column = tl.arange(0, 32)[None, :]
    sign = (x.to(tl.int32, bitcast=True) >> 31) & 1
    place = tl.min(tl.where(x == low[:, None], column * 2 + sign, 64), axis=1)
    m = tl.where(low == 0, tl.where((place & 1) == 1, -0.0, 0.0), low)
    d = tl.where(high > low, tl.div_rn(high - low, TOP), 0.0)
    non_finite = tl.max(magnitude_bits(x), axis=1) >= INFINITY_BITS
    flag_blocks(flag, block, non_finite, block < 0, _overflow(d, m))
    shifted = (x - m[:, None]) * normal_reciprocal(d)[:, None] + 0.5
    return _word(d, m), tl.minimum(shifted.to(tl.int32), TOP)


@triton.jit
def encode_searched(
    rows,
    flag,
    n_blocks,
    importance,
    mean,
    row_blocks,
    block,
    TOP: tl.constexpr,
    GRID: tl.constexpr,
    GRID_INVERSE: tl.constexpr,
    N_GRID: tl.constexpr,
    EDGES: tl.constexpr,
    N_EDGES: tl.constexpr,
    BLEND: tl.constexpr,
):
    """As `encode_between`, for the blocks int64[R] of `rows`, by the search."""
    inside = block < n_blocks
    x = load_block(rows + block * 32, inside, 32, 5)
    bottom, top, finite = extremes(x)
    weight = row_weights(x, importance, mean, block, inside, row_blocks, BLEND, 1.0)
    sum_w = tl.zeros_like(bottom)
    sum_wx = sum_w
    for i in tl.static_range(0, 32):
        sum_w += weight[i]
        sum_wx += weight[i] * x[i]
    inverse_w = reciprocal(sum_w)
    average = sum_wx * inverse_w

    span = top - bottom
    inverse_span = reciprocal(span)
    gain = tl.zeros_like(span)
    scale, low = gain, average
    for g in range(0, N_GRID):
        inverse = pick(GRID, N_GRID, g) * inverse_span
        step = span * pick(GRID_INVERSE, N_GRID, g)
        for e in range(0, N_EDGES):
            start = bottom + pick(EDGES, N_EDGES, e) * step
            fitted, fitted_low, explained = _fit(x, weight, inverse_w, average, start, inverse, TOP)
            better = explained > gain
            gain = tl.where(better, explained, gain)
            scale = tl.where(better, fitted, scale)
            low = tl.where(better, fitted_low, low)
    flag_blocks(flag, block, inside & ~finite, inside & out_of_range(bottom, top), inside & _overflow(scale, low))

    d, m = half_or(scale, 0.0), _half_or(low, 0.0)
    fitted, fitted_low, _ = _fit(x, weight, inverse_w, average, m, reciprocal(d), TOP)
    again, m_again = half_or(tl.where(fitted > 0, fitted, d), d), _half_or(fitted_low, m)
    better = _error(x, weight, again, m_again, TOP) < _error(x, weight, d, m, TOP)
    d, m = tl.where(better, again, d), tl.where(better, m_again, m)
    inverse = reciprocal(d)
    code = ()
    for i in tl.static_range(0, 32):
        code += (codes((x[i] - m) * inverse, 0, TOP).to(tl.int32),)
    return _word(d, m), columns(code, 5)


@triton.jit
def _fit(x, weight, inverse_w, average, start, inverse, TOP: tl.constexpr):
    """The line that fits the codes of (x - start) * inverse best -> (scale, low end, gain)."""
    sum_q = tl.zeros_like(inverse)
    sum_qq = sum_q
    cross = sum_q
    for i in tl.static_range(0, 32):
        q = codes((x[i] - start) * inverse, 0, TOP)
        wq = weight[i] * q
        sum_q += wq
        sum_qq += wq * q
        cross += weight[i] * (x[i] - average) * q
    mean_q = sum_q * inverse_w
    scale = cross * reciprocal(sum_qq - sum_q * mean_q)
    return scale, average - scale * mean_q, cross * scale


@triton.jit
def _error(x, weight, d, m, TOP: tl.constexpr):
    """The weighted error of x under its nearest codes for `d` and `m`."""
    inverse = reciprocal(d)
    result = tl.zeros_like(d)
    for i in tl.static_range(0, 32):
        off = (d * codes((x[i] - m) * inverse, 0, TOP) + m) - x[i]
        result += weight[i] * off * off
    return result


@triton.jit
def _half_or(value, otherwise):
    """The nearest fp16 number, 0 among them, as float32; `otherwise` where the value is too large for fp16."""
    fits = tl.abs(value) < HALF_OVERFLOW
    return tl.where(fits, tl.where(fits, value, 0.0).to(tl.float16).to(tl.float32), otherwise)


@triton.jit
def _overflow(d, m):
    return is_half_infinity(half_bits(d)) | is_half_infinity(half_bits(m))


@triton.jit
def _word(d, m):
    """| d: fp16 | m: fp16 | as a little-endian word."""
    return (half_bits(d).to(tl.int32) & 0xFFFF) | (half_bits(m).to(tl.int32) << 16)


@triton.jit
def load_scales(start, inside):
    """The words that `_word` makes -> d, m as float32[B]."""
    word = tl.load(start, mask=inside, other=0)
    d = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return d, (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
