"""Q6_K on a GPU: 256 weights are 16 blocks of 16, each with a signed 8-bit scale under one fp16 number.

    super-block = | 128 bytes: low nibbles | 64 bytes: high bit pairs | 16 x int8 scales | d: fp16 |
                  210 bytes, which the kernels see as 105 16-bit words
    of each half of 128 weights, code 32k + l:  nibble k / 2 of low byte 32 (k % 2) + l, and bit pair k of high byte l
    weight[j, i] = d * scale[j] * (code[j, i] - 32)

The search (symmetric.py) is the reference's, and gives its bytes.
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
from .blocks import half_bits
from .search import codes, columns, load_block, reciprocal
from .symmetric import constants, importance_weights, plain_weights, search

DTYPE = Q6_K
SYMMETRIC = constants(reference.SYMMETRIC)


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    x = load_block(rows + block * 16, block < n_blocks * 16, 16, 4)
    d, scales = search(x, plain_weights(x, SYMMETRIC), None, flag, block, n_blocks, SYMMETRIC)
    _store(packed, tl.reshape(block // 16, (BLOCKS, 16)), n_blocks, x, d, scales)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    x = load_block(rows + block * 16, inside, 16, 4)
    given = load_block(importance + block % (row_blocks * 16) * 16, inside, 16, 4)
    d, scales = search(x, importance_weights(x, given, SYMMETRIC), None, flag, block, n_blocks, SYMMETRIC)
    _store(packed, tl.reshape(block // 16, (BLOCKS, 16)), n_blocks, x, d, scales)


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
