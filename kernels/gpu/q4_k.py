"""Q4_K on a GPU: 256 weights are 8 blocks of 32, each with a 6-bit scale and a 6-bit min under two fp16 numbers.

    super-block = | d: fp16 | dmin: fp16 | 12 bytes: scales, mins | 128 bytes: codes |     144 bytes, 36 32-bit words
    word 4 + 8r + v holds, of block 2r, codes 4v + k at bits 8k, and of block 2r + 1, codes 4v + k at bits 8k + 4
    weight[j, i] = d * scale[j] * code[j, i] - dmin * min[j]

The search is the reference's, with one block of 32 a thread, and gives its bytes. Codes are not kept during the search:
they follow from the scales.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q4_K
from ..reference import q4_k as reference
from . import launch
from .blocks import flag_blocks, half_bits, is_half_infinity
from .search import (
    TINY,
    codes,
    columns,
    extremes,
    half,
    half_or,
    in_order,
    load_block,
    out_of_range,
    pick,
    reciprocal,
    sum_of_squares,
)

DTYPE = Q4_K
GRID = tl.constexpr(tuple(float(g) for g in reference.GRID))
GRID_INVERSE = tl.constexpr(tuple(float(1 / g) for g in reference.GRID))
EDGES = tl.constexpr(tuple(float(e) for e in reference.EDGES))
NEIGHBOURS = tl.constexpr(tuple(float(k) for k in reference.NEIGHBOURS))
N_GRID, N_EDGES, N_NEIGHBOURS = (
    tl.constexpr(len(grid)) for grid in (reference.GRID, reference.EDGES, reference.NEIGHBOURS)
)
BLEND = tl.constexpr(float(reference.BLEND))
STRETCH = tl.constexpr(float(reference.AFFINE.stretch))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    x = load_block(rows + block * 32, block < n_blocks * 8, 32, 5)
    rms = tl.sqrt_rn(sum_of_squares(x) * 0.03125)
    weight = ()
    for i in tl.static_range(0, 32):
        weight += (rms + tl.abs(x[i]),)
    _search(x, weight, packed, flag, block, n_blocks)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    inside = block < n_blocks * 8
    x = load_block(rows + block * 32, inside, 32, 5)
    given = load_block(importance + block % (row_blocks * 8) * 32, inside, 32, 5)
    twice_mean = in_order(sum_of_squares(x), 8) * 0.0078125
    blend = BLEND * tl.sqrt_rn(twice_mean)
    weight = ()
    for i in tl.static_range(0, 32):
        weight += (given[i] * tl.sqrt_rn(twice_mean + x[i] * x[i]) + blend,)
    _search(x, weight, packed, flag, block, n_blocks)


@triton.jit
def _search(x, weight, packed, flag, block, n_blocks):
    """Steps 1 to 3 of the reference, and the store. `block` counts blocks of 32, of which 8 neighbours share d and dmin."""
    S: tl.constexpr = block.shape[0] // 8
    low, high, finite = extremes(x)
    sum_w = tl.zeros_like(low)
    sum_wx = sum_w
    for i in tl.static_range(0, 32):
        sum_w += weight[i]
        sum_wx += weight[i] * x[i]
    inverse_w = reciprocal(sum_w)
    mean = sum_wx * inverse_w
    scale, bottom = _fit_block(x, weight, sum_w, inverse_w, mean, tl.minimum(low, 0.0), high)

    d = half(tl.div_rn(_largest_of_8(scale), 63.0))
    dmin = half(tl.div_rn(_largest_of_8(-bottom), 63.0))
    overflow = is_half_infinity(half_bits(d)) | is_half_infinity(half_bits(dmin))
    inside = block < n_blocks * 8
    flag_blocks(flag, block // 8, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    error = tl.full(low.shape, float("inf"), tl.float32)
    best_d, best_dmin, scales, mins = d, dmin, tl.zeros_like(d), tl.zeros_like(d)
    for _ in range(0, 2):
        tried, tried_min, tried_error = _round_scales(x, weight, inverse_w, mean, scale, bottom, d, dmin)
        better = tried_error < error
        error = tl.where(better, tried_error, error)
        best_d, best_dmin = tl.where(better, d, best_d), tl.where(better, dmin, best_dmin)
        scales, mins = tl.where(better, tried, scales), tl.where(better, tried_min, mins)
        d, dmin = _fit_super(x, weight, sum_w, mean, tried, tried_min, d, dmin)
    _store(packed, tl.reshape(block // 8, (S, 8)), n_blocks, x, best_d, best_dmin, scales, mins)


@triton.jit
def _largest_of_8(value):
    """The largest of each 8 neighbours, for all of them."""
    S: tl.constexpr = value.shape[0] // 8
    eight = tl.reshape(value, (S, 8))
    return tl.reshape(tl.broadcast_to(tl.max(eight, axis=1)[:, None], (S, 8)), (S * 8,))


@triton.jit
def _fit_block(x, weight, sum_w, inverse_w, mean, bottom, top):
    """Step 1 -> (scale, low end <= 0)."""
    span = top - bottom
    inverse_span = reciprocal(span)
    # Gains count from all codes 0 at the mean; where that is above 0, low is 0 and all of it is still to gain.
    positive = tl.maximum(mean, 0.0)
    best = -(positive * positive * sum_w)
    scale = tl.zeros_like(span)
    low = tl.minimum(mean, 0.0)
    for g in range(0, N_GRID):
        inverse = pick(GRID, N_GRID, g) * inverse_span
        step = span * pick(GRID_INVERSE, N_GRID, g)
        for e in range(0, N_EDGES):
            start = bottom + pick(EDGES, N_EDGES, e) * step
            sum_q = tl.zeros_like(scale)
            sum_qq = sum_q
            cross = sum_q
            for i in tl.static_range(0, 32):
                q = codes((x[i] - start) * inverse, 0, 15)
                wq = weight[i] * q
                sum_q += wq
                sum_qq += wq * q
                cross += weight[i] * (x[i] - mean) * q
            mean_q = sum_q * inverse_w
            fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
            fitted_low = mean - fitted * mean_q
            through = cross + mean * sum_q
            fitted_through = through * reciprocal(sum_qq)
            above = fitted_low > 0
            gain = tl.where(above, through * fitted_through - mean * mean * sum_w, cross * fitted)
            better = gain > best
            best = tl.where(better, gain, best)
            scale = tl.where(better, tl.where(above, fitted_through, fitted), scale)
            low = tl.where(better, tl.where(above, 0.0, fitted_low), low)
    return scale, low


@triton.jit
def _round_scales(x, weight, inverse_w, mean, scale, low, d, dmin):
    """Step 2 -> (scale codes, min codes, the super-block's error)."""
    inverse_dmin = reciprocal(dmin)
    nearest = codes(scale * reciprocal(d), 0, 63)
    best = tl.full(scale.shape, float("inf"), tl.float32)
    scales = tl.zeros_like(scale)
    mins = scales
    for k in range(0, N_NEIGHBOURS):
        tried = tl.minimum(tl.maximum(nearest + pick(NEIGHBOURS, N_NEIGHBOURS, k), 0.0), 63.0)
        step = d * tried
        inverse = reciprocal(step)
        sum_q = tl.zeros_like(scale)
        for i in tl.static_range(0, 32):
            sum_q += weight[i] * codes((x[i] - low) * inverse, 0, 15)
        tried_min = codes((step * (sum_q * inverse_w) - mean) * inverse_dmin, 0, 63)
        under = dmin * tried_min
        error = tl.zeros_like(scale)
        for i in tl.static_range(0, 32):
            off = (step * codes((x[i] + under) * inverse, 0, 15) - under) - x[i]
            error += weight[i] * off * off
        better = error < best
        best = tl.where(better, error, best)
        scales = tl.where(better, tried, scales)
        mins = tl.where(better, tried_min, mins)
    return scales, mins, in_order(best, 8)


@triton.jit
def _fit_super(x, weight, sum_w, mean, scales, mins, d, dmin):
    """Step 3 -> (d, dmin) that fit the codes best, on fp16 numbers; as they were where nothing is to fit."""
    under = dmin * mins
    inverse = reciprocal(d * scales)
    sum_q = tl.zeros_like(d)
    sum_qq = sum_q
    cross = sum_q
    for i in tl.static_range(0, 32):
        q = codes((x[i] + under) * inverse, 0, 15)
        wq = weight[i] * q
        sum_q += wq
        sum_qq += wq * q
        cross += weight[i] * (x[i] - mean) * q
    cross = cross + mean * sum_q
    aa = in_order(scales * scales * sum_qq, 8)
    ab = in_order(scales * mins * sum_q, 8)
    bb = in_order(mins * mins * sum_w, 8)
    ax = in_order(scales * cross, 8)
    bx = in_order(mins * (mean * sum_w), 8)
    determinant = aa * bb - ab * ab
    both = determinant > 1e-5 * (aa * bb)
    inverse = tl.div_rn(1.0, tl.where(both, determinant, 1.0))
    new_d = tl.where(both, (ax * bb - bx * ab) * inverse, ax * reciprocal(aa))
    new_dmin = tl.where(both, (ax * ab - bx * aa) * inverse, dmin)
    sound = (new_d > TINY) & (new_dmin >= 0)
    return half_or(tl.where(sound, new_d, d), d), half_or(tl.where(sound, new_dmin, dmin), dmin)


@triton.jit
def _store(packed, super_block, n_blocks, x, d, dmin, scales, mins):
    """Codes by the chosen scales, packed; two stores of 16 bytes a thread."""
    S: tl.constexpr = super_block.shape[0]
    under = dmin * mins
    inverse = reciprocal(d * scales)
    words = ()
    for i in tl.static_range(0, 32, 4):
        word = codes((x[i] + under) * inverse, 0, 15).to(tl.int32)
        for k in tl.static_range(1, 4):
            word |= codes((x[i + k] + under) * inverse, 0, 15).to(tl.int32) << (8 * k)
        words += (word,)
    pairs = tl.permute(tl.reshape(columns(words, 3), (S * 4, 2, 8)), (0, 2, 1))
    low, high = tl.split(pairs)

    first = tl.min(super_block, axis=1)
    run = tl.arange(0, 4)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    inside = (first < n_blocks)[:, None, None]
    tl.store(packed + (first * 36 + 4)[:, None, None] + run, tl.reshape(low | (high << 4), (S, 4, 8)), mask=inside)

    d, dmin = half_or(d * STRETCH, d), half_or(dmin * STRETCH, dmin)
    halves = (half_bits(d).to(tl.int32) & 0xFFFF) | (half_bits(dmin).to(tl.int32) << 16)
    scale, minimum, halves = (
        tl.reshape(scales.to(tl.int32), (S, 8)),
        tl.reshape(mins.to(tl.int32), (S, 8)),
        tl.reshape(halves, (S, 8)),
    )
    j = tl.arange(0, 8)[None, :]
    shift = (j % 4) * 8
    head = (
        tl.max(halves, axis=1),
        tl.xor_sum(tl.where(j < 4, scale, (scale >> 4) << 6) << shift, axis=1),
        tl.xor_sum(tl.where(j < 4, minimum, (minimum >> 4) << 6) << shift, axis=1),
        tl.xor_sum(tl.where(j < 4, 0, (scale & 15) | ((minimum & 15) << 4)) << shift, axis=1),
    )
    place = (first * 36)[:, None] + tl.arange(0, 4)[None, :]
    tl.store(packed + place, columns(head, 2), mask=(first < n_blocks)[:, None])


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 36
    word = tl.arange(0, 32)[None, :]
    runs = tl.load(packed + (block[:, None] * 36 + 4 + word), mask=inside[:, None], other=0)
    runs = tl.reshape(runs, (BLOCKS, 4, 1, 8, 1))
    nibble = tl.arange(0, 2)[None, None, :, None, None]
    byte = tl.arange(0, 4)[None, None, None, None, :]
    code = tl.reshape((runs >> (nibble * 4 + byte * 8)) & 15, (BLOCKS, 8, 32)).to(tl.float32)

    step, low = _load_scales(packed + block * 36, inside)
    out = step[:, :, None] * code - low[:, :, None]
    place = tl.arange(0, 8)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    place += block[:, None, None] * 256
    tl.store(weights + first * 256 + place, out.to(weights.dtype.element_ty), mask=inside[:, None, None])


@triton.jit
def _load_scales(heads, inside):
    """Words 0 to 3 of each super-block -> d * scale and dmin * min, float32[B, 8]: products of 17 bits, exact."""
    j = tl.arange(0, 8)[None, :]
    shift = (j % 4) * 8
    mask = inside[:, None]
    both = tl.load(heads, mask=inside, other=0)
    d = both.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    dmin = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    low = tl.load(heads[:, None] + 1 + j * 0, mask=mask, other=0) >> shift
    high = tl.load(heads[:, None] + 2 + j * 0, mask=mask, other=0) >> shift
    rest = tl.load(heads[:, None] + 3 + j * 0, mask=mask, other=0) >> shift
    scale = tl.where(j < 4, low & 63, (rest & 15) | ((low >> 2) & 48))
    minimum = tl.where(j < 4, high & 63, ((rest >> 4) & 15) | ((high >> 2) & 48))
    return d[:, None] * scale.to(tl.float32), dmin[:, None] * minimum.to(tl.float32)


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64"}, 16, 4)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 8, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 144] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), rows.shape[1] // DTYPE.block
    )


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 144] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
