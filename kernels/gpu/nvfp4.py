"""NVFP4 on a GPU: 64 weights are 4 blocks of 16, each with an 8-bit float scale; each weight is a 4-bit float.

    super-block = | 4 x UE4M3 scales | 4 x 8 bytes: E2M1 codes |     36 bytes, which the kernels see as 9 32-bit words
    byte i of a block holds code[i] (low nibble) and code[i + 8] (high nibble)
    weight[j, i] = scale[j] / 2 * value[code[j, i]],  scale[j] = UE4M3 of max|x| / 6

Same bytes as the reference, which says how scales round and what is refused. Source: ggml, quantize_row_nvfp4_ref.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import NVFP4
from ..reference import nvfp4 as reference
from . import launch
from .blocks import INFINITY_BITS, flag_blocks, load_tile, magnitude_bits, paired_nibbles, store_blocks, words_of
from .e2m1 import doubled, nearest

DTYPE = NVFP4
LIMIT = tl.constexpr(float(reference.LIMIT))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first * 4 + tl.arange(0, BLOCKS * 4)
    x = load_tile(rows, first * 4, block < n_blocks * 4, 16)
    bits = tl.max(magnitude_bits(x), axis=1)
    largest = bits.to(tl.float32, bitcast=True)
    flag_blocks(flag, block // 4, bits >= INFINITY_BITS, largest >= LIMIT, bits < 0)
    scale = _narrow(tl.div_rn(largest, 6.0))
    code = words_of(paired_nibbles(nearest(x, _widen(scale))), 4)
    scales = words_of(tl.reshape(scale, (BLOCKS, 4)), 4)
    store_blocks(packed, first, n_blocks, (tl.reshape(scales, (BLOCKS,)),), tl.reshape(code, (BLOCKS, 8)), ())


@triton.jit
def _narrow(value):
    """float32[B] in [0, 464) -> UE4M3, int32[B]."""
    bits = value.to(tl.int32, bitcast=True)
    normal = (((bits >> 19) + 1) >> 1) - ((127 - 7) << 3)
    normal = tl.where(normal >= 0x78, 0x7E, normal)
    small = tl.minimum((value * 512 + 0.5).to(tl.int32), 7)
    return tl.where(value < 0.015625, small, normal)


@triton.jit
def _widen(scale):
    """UE4M3 int32 -> half its value, float32; the highest bit counts for nothing."""
    exponent = (scale >> 3) & 15
    fraction = scale & 7
    normal = ((exponent + (127 - 8)) << 23) | (fraction << 20)
    value = tl.where(exponent == 0, fraction.to(tl.float32) * 0.0009765625, normal.to(tl.float32, bitcast=True))
    return tl.where(scale == 0x7F, 0.0, value)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    mask = (first + block < n_blocks)[:, None, None]
    start = (packed + first * 9 + block * 9)[:, None, None]
    part = tl.arange(0, 4)[None, :, None]
    column = tl.arange(0, 16)[None, None, :]
    scales = tl.load(start + part * 0, mask=mask, other=0)
    half_scale = _widen((scales >> (8 * part)) & 0xFF)
    word = tl.load(start + 1 + part * 2 + (column % 8) // 4, mask=mask, other=0)
    out = half_scale * doubled((word >> (8 * (column % 4) + 4 * (column // 8))) & 15)
    place = block[:, None, None] * 64 + part * 16 + column
    tl.store(weights + first * 64 + place, out.to(weights.dtype.element_ty), mask=mask)


# 64 super-blocks are 256 blocks of 16
ENCODE = launch.Launch(
    _encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64"}, 64, 4, limit=float(reference.LIMIT)
)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 64, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 64 * 36] uint8.

    Importance changes nothing. NonFiniteError, ScaleOverflowError.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 64 * 36] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
