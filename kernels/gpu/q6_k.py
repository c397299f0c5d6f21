"""Q6_K on a GPU: 256 weights are 16 blocks of 16, each with a signed 8-bit scale under one fp16 number.

    super-block = | 128 bytes: low nibbles | 64 bytes: high bit pairs | 16 x int8 scales | d: fp16 |
                  210 bytes, which the kernels see as 105 16-bit words
    of each half of 128 weights, code 32k + l:  nibble k / 2 of low byte 32 (k % 2) + l, and bit pair k of high byte l
    weight[j, i] = d * scale[j] * (code[j, i] - 32)

The search is the reference's, with one block of 16 a thread, and gives its bytes. Codes are not kept during the search:
they follow from the scales.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q6_K
from ..reference import q6_k as reference
from . import launch
from .blocks import flag_blocks, half_bits, is_half_infinity
from .search import (
    codes,
    columns,
    error,
    extremes,
    fit,
    half,
    half_or,
    in_order,
    load_block,
    out_of_range,
    pick,
    reciprocal,
    signed_extreme,
    sum_of_squares,
)

DTYPE = Q6_K
GRID = tl.constexpr(tuple(float(g) for g in reference.GRID))
TOP_INVERSE = tl.constexpr(float(1 / reference.TOP))  # a power of two: the product is the quotient
NEIGHBOURS = tl.constexpr(tuple(float(k) for k in reference.NEIGHBOURS))
N_GRID, N_NEIGHBOURS = tl.constexpr(len(reference.GRID)), tl.constexpr(len(reference.NEIGHBOURS))
BLEND = tl.constexpr(float(reference.BLEND))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    x = load_block(rows + block * 16, block < n_blocks * 16, 16, 4)
    blend = BLEND * (in_order(sum_of_squares(x), 16) * 0.00390625)
    weight = ()
    for i in tl.static_range(0, 16):
        weight += (x[i] * x[i] + blend,)
    _search(x, weight, packed, flag, block, n_blocks)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    x = load_block(rows + block * 16, inside, 16, 4)
    given = load_block(importance + block % (row_blocks * 16) * 16, inside, 16, 4)
    weight = ()
    for i in tl.static_range(0, 16):
        weight += (given[i] + BLEND,)
    _search(x, weight, packed, flag, block, n_blocks)


@triton.jit
def _search(x, weight, packed, flag, block, n_blocks):
    """Steps 1 to 3 of the reference, and the store. `block` counts blocks of 16, of which 16 neighbours share d."""
    S: tl.constexpr = block.shape[0] // 16
    low, high, finite = extremes(x)
    scale = _fit_block(x, weight, reciprocal(signed_extreme(low, high)))
    d = half(_signed_largest_of_16(scale) * TOP_INVERSE)
    overflow = is_half_infinity(half_bits(d))
    inside = block < n_blocks * 16
    flag_blocks(flag, block // 16, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    least = tl.full(low.shape, float("inf"), tl.float32)
    best_d, scales = d, tl.zeros_like(d)
    nearest = codes(scale * reciprocal(d), -128, 127)
    for _ in range(0, 2):
        tried, tried_error = _round_scales(x, weight, nearest, d)
        better = tried_error < least
        least = tl.where(better, tried_error, least)
        best_d = tl.where(better, d, best_d)
        scales = tl.where(better, tried, scales)
        d = _fit_super(x, weight, d, tried)
        nearest = tried
    _store(packed, tl.reshape(block // 16, (S, 16)), n_blocks, x, best_d, scales)


@triton.jit
def _signed_largest_of_16(value):
    """The value of largest magnitude of each 16 neighbours, for all of them."""
    S: tl.constexpr = value.shape[0] // 16
    neighbours = tl.reshape(value, (S, 16))
    extreme = signed_extreme(tl.min(neighbours, axis=1), tl.max(neighbours, axis=1))
    return tl.reshape(tl.broadcast_to(extreme[:, None], (S, 16)), (S * 16,))


@triton.jit
def _fit_block(x, weight, inverse):
    """Step 1 -> the scale of each block, with its sign."""
    best = tl.zeros_like(inverse)
    scale = best
    for step in range(0, N_GRID):
        fitted, gain = fit(x, weight, pick(GRID, N_GRID, step) * inverse, -32, 31)
        better = gain > best
        best = tl.where(better, gain, best)
        scale = tl.where(better, fitted, scale)
    return scale


@triton.jit
def _round_scales(x, weight, nearest, d):
    """Step 2 -> (scale codes, the super-block's error)."""
    least = tl.full(d.shape, float("inf"), tl.float32)
    scales = tl.zeros_like(d)
    for k in range(0, N_NEIGHBOURS):
        tried = tl.minimum(tl.maximum(nearest + pick(NEIGHBOURS, N_NEIGHBOURS, k), -128.0), 127.0)
        tried_error = error(x, weight, d * tried, -32, 31)
        better = tried_error < least
        least = tl.where(better, tried_error, least)
        scales = tl.where(better, tried, scales)
    return scales, in_order(least, 16)


@triton.jit
def _fit_super(x, weight, d, scales):
    """Step 3 -> the d that fits the codes best, on an fp16 number; as it was where nothing is to fit."""
    inverse = reciprocal(d * scales)
    cross = tl.zeros_like(d)
    square = cross
    for i in tl.static_range(0, 16):
        q = codes(x[i] * inverse, -32, 31)
        wq = weight[i] * q
        cross += wq * x[i]
        square += wq * q
    fitted = in_order(scales * cross, 16) * reciprocal(in_order(scales * scales * square, 16))
    return half_or(tl.where(fitted != 0, fitted, d), d)


@triton.jit
def _store(packed, super_block, n_blocks, x, d, scales):
    """Codes by the chosen scales, packed. Of a half's 8 blocks, block 2k + p holds codes 32k + 16p to 32k + 16p + 15."""
    S: tl.constexpr = super_block.shape[0]
    inverse = reciprocal(d * scales)
    words = ()
    for i in tl.static_range(0, 16, 2):
        even = codes(x[i] * inverse, -32, 31).to(tl.int32) + 32
        odd = codes(x[i + 1] * inverse, -32, 31).to(tl.int32) + 32
        words += (even | (odd << 8),)
    both = tl.reshape(columns(words, 3), (S * 2, 4, 2, 8))
    first = tl.min(super_block, axis=1)
    start = packed + first * 105
    inside = first < n_blocks

    pairs = tl.reshape(both & 0x0F0F, (S * 2, 2, 32))
    low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
    place = start[:, None] + tl.arange(0, 64)[None, :]
    tl.store(place, tl.reshape(low | (high << 4), (S, 64)).to(tl.int16), mask=inside[:, None])

    k = tl.arange(0, 4)[None, :, None, None]
    tops = tl.xor_sum(((both >> 4) & 0x0303) << (2 * k), axis=1)
    place = start[:, None] + 64 + tl.arange(0, 32)[None, :]
    tl.store(place, tl.reshape(tops, (S, 32)).to(tl.int16), mask=inside[:, None])

    even, odd = tl.split(tl.reshape(scales.to(tl.int32), (S, 8, 2)))
    place = start[:, None] + 96 + tl.arange(0, 8)[None, :]
    tl.store(place, ((even & 0xFF) | (odd << 8)).to(tl.int16), mask=inside[:, None])
    tl.store(start + 104, tl.max(tl.reshape(half_bits(d), (S, 16)), axis=1), mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 105
    mask = inside[:, None]
    start = block[:, None] * 105
    low = tl.load(packed + start + tl.arange(0, 64)[None, :], mask=mask, other=0).to(tl.int32)
    high = tl.load(packed + start + 64 + tl.arange(0, 32)[None, :], mask=mask, other=0).to(tl.int32)
    scale = tl.load(packed + start + 96 + tl.arange(0, 16)[None, :] // 2, mask=mask, other=0)
    scale = (scale << (8 - 8 * (tl.arange(0, 16)[None, :] % 2)).to(tl.int16)) >> 8
    d = tl.load(packed + block * 105 + 104, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)

    # axes: super-block, half, k / 2, k % 2, word, byte
    upper = tl.arange(0, 2)[None, None, :, None, None, None]
    lower = tl.arange(0, 2)[None, None, None, :, None, None]
    byte = tl.arange(0, 2)[None, None, None, None, None, :]
    nibble = (tl.reshape(low, (BLOCKS, 2, 1, 2, 16, 1)) >> (upper * 4 + byte * 8)) & 15
    pair = (tl.reshape(high, (BLOCKS, 2, 1, 1, 16, 1)) >> (upper * 4 + lower * 2 + byte * 8)) & 3
    code = tl.reshape(nibble | (pair << 4), (BLOCKS, 16, 16)) - 32

    out = (d[:, None] * scale.to(tl.float32))[:, :, None] * code.to(tl.float32)
    place = tl.arange(0, 16)[None, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    place += block[:, None, None] * 256
    tl.store(weights + first * 256 + place, out.to(weights.dtype.element_ty), mask=inside[:, None, None])


# 8 super-blocks are 128 blocks of 16, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 8, 4)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 8, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 8, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 210] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), rows.shape[1] // DTYPE.block
    )


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 210] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
