"""Q4_K on a GPU: 256 weights in 8 blocks of 32, each with a 6-bit scale and a 6-bit minimum.

    block = | d: fp16 | dmin: fp16 | 12 bytes: scales, minima | 128 bytes |       144 bytes, 36 32-bit words
    word 4 + 8g + w holds codes 64g + 4w + k (nibble at 8k) and 64g + 32 + 4w + k (nibble at 8k + 4)
    weight[i] = d * scale[i / 32] * codes[i] - dmin * minimum[i / 32]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q4_K
from . import launch
from .blocks import HALF_INFINITY_BITS, INFINITY_BITS, flag_blocks, magnitude_bits, reciprocal, round_even
from .search import affine

DTYPE = Q4_K


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flags, n_blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    x, bits = _load_rows(rows, first, n_blocks, BLOCKS)
    weight = tl.sqrt_rn(tl.sum(x * x, axis=1) / 32)[:, None] + tl.abs(x)
    scale, lowest = affine(x, weight, 15, -1.0, 0.1, 21)
    scales = tl.reshape(scale, (BLOCKS, 8))
    minima = tl.reshape(-lowest, (BLOCKS, 8))
    d = tl.div_rn(tl.max(scales, axis=1), 63.0).to(tl.float16)
    dmin = tl.div_rn(tl.max(minima, axis=1), 63.0).to(tl.float16)
    scale_code = tl.minimum(round_even(scales * reciprocal(d.to(tl.float32))[:, None]), 63)
    minimum_code = tl.minimum(round_even(minima * reciprocal(dmin.to(tl.float32))[:, None]), 63)
    _store(packed, flags, first, n_blocks, x, bits, d, dmin, scale_code, minimum_code)


@triton.jit
def _load_rows(rows, first, n_blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """-> float32[BLOCKS * 8, 32], and the bits of each block's largest magnitude."""
    small = tl.arange(0, BLOCKS * 8)[:, None]
    inside = first + small // 8 < n_blocks
    x = tl.load(rows + first * 256 + (small * 32 + tl.arange(0, 32)[None, :]), mask=inside, other=0.0).to(tl.float32)
    return x, tl.max(tl.reshape(tl.max(magnitude_bits(x), axis=1), (BLOCKS, 8)), axis=1)


@triton.jit
def _store(packed, flags, first, n_blocks, x, bits, d, dmin, scale_code, minimum_code):  # type: ignore[no-untyped-def]
    """Round x to codes with the scales as they will be read, and write the blocks."""
    B: tl.constexpr = d.shape[0]
    block = tl.arange(0, B)
    inside = first + block < n_blocks
    half = d.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    half_min = dmin.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    overflow = (half == HALF_INFINITY_BITS) | (half_min == HALF_INFINITY_BITS)
    flag_blocks(flags, first + block, bits >= INFINITY_BITS, overflow)

    scale = tl.reshape(d.to(tl.float32)[:, None] * scale_code, (B * 8,))
    minimum = tl.reshape(dmin.to(tl.float32)[:, None] * minimum_code, (B * 8,))
    code = round_even(tl.div_rn(x + minimum[:, None], tl.where(scale > 0, scale, 1.0)[:, None]))
    code = tl.where(scale[:, None] > 0, tl.clamp(code, 0, 15), 0.0).to(tl.int32)

    packed += first * 36
    word = tl.arange(0, 32)[None, :]
    tl.store(packed + (block[:, None] * 36 + 4 + word), _pack_codes(code, B), mask=inside[:, None])
    low, high, rest = _pack_scales(scale_code.to(tl.int32), minimum_code.to(tl.int32))
    tl.store(packed + block * 36, half | (half_min << 16), mask=inside)
    tl.store(packed + block * 36 + 1, low, mask=inside)
    tl.store(packed + block * 36 + 2, high, mask=inside)
    tl.store(packed + block * 36 + 3, rest, mask=inside)


@triton.jit
def _pack_codes(code, B: tl.constexpr):  # type: ignore[no-untyped-def]
    """int32[B * 8, 32] -> int32[B, 32]"""
    even, odd = tl.split(tl.reshape(code, (B * 8, 8, 2, 2)))
    low, high = tl.split(even | (odd << 8))
    bytewise = tl.reshape(low | (high << 16), (B, 4, 2, 8))
    low, high = tl.split(tl.permute(bytewise, (0, 1, 3, 2)))
    return tl.reshape(low | (high << 4), (B, 32))


@triton.jit
def _pack_scales(scale, minimum):  # type: ignore[no-untyped-def]
    """6-bit int32[B, 8] twice -> the 12 bytes as three int32[B]; the bits of different columns never overlap."""
    j = tl.arange(0, 8)[None, :]
    shift = (j % 4) * 8
    early = j < 4
    low = tl.xor_sum(tl.where(early, scale, (scale >> 4) << 6) << shift, axis=1)
    high = tl.xor_sum(tl.where(early, minimum, (minimum >> 4) << 6) << shift, axis=1)
    rest = tl.xor_sum(tl.where(early, 0, (scale & 15) | ((minimum & 15) << 4)) << shift, axis=1)
    return low, high, rest


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 36
    word = tl.arange(0, 32)[None, :]
    codes = tl.load(packed + (block[:, None] * 36 + 4 + word), mask=inside[:, None], other=0)
    codes = tl.reshape(codes, (BLOCKS, 4, 1, 8, 1))
    half = tl.arange(0, 2)[None, None, :, None, None]
    byte = tl.arange(0, 4)[None, None, None, None, :]
    code = tl.reshape((codes >> (half * 4 + byte * 8)) & 15, (BLOCKS, 8, 32)).to(tl.float32)

    scale, minimum = _load_scales(packed + block * 36, inside)
    out = scale[:, :, None] * code - minimum[:, :, None]
    place = tl.arange(0, 8)[None, :, None] * 32 + tl.arange(0, 32)[None, None, :]
    place += block[:, None, None] * 256
    tl.store(weights + first * 256 + place, out.to(weights.dtype.element_ty), mask=inside[:, None, None])


@triton.jit
def _load_scales(heads, inside):  # type: ignore[no-untyped-def]
    """Words 0 to 3 of each block -> d * scale and dmin * minimum, float32[B, 8]: products of 17 bits, exact."""
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


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i32", "flags": "*i64", "n_blocks": "i64"}, 4, 4)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 8, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 144] uint8."""
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 144] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
