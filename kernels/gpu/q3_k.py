"""Q3_K on a GPU: 256 weights are 16 blocks of 16, each with a signed 6-bit scale under one fp16 number.

    super-block = | 32 bytes: high bits | 64 bytes: low 2 bits | 12 bytes: scales | d: fp16 |
                  110 bytes, which the kernels see as 55 16-bit words
    code 128 r + 32 k + l:  bit pair k of byte l of run r's 32 low bytes, and bit 4 r + k of high byte l
    scale[j] + 32:  nibble j / 8 of scale byte j % 8, and bit pair j / 4 of scale byte 8 + j % 4
    weight[j, i] = (d * scale[j]) * (code[j, i] - 4)

The search (symmetric.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q3_K
from ..reference import q3_k as reference
from . import launch
from .blocks import half_bits
from .search import codes, columns, load_block, reciprocal
from .super_block import half_value, store_weights
from .symmetric import constants, importance_weights, plain_weights, search

DTYPE = Q3_K
PLAIN, WEIGHTED = constants(reference.PLAIN), constants(reference.WEIGHTED)


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    x = load_block(rows + block * 16, block < n_blocks * 16, 16, 4)
    d, scales = search(x, plain_weights(x, PLAIN), None, flag, block, n_blocks, PLAIN)
    _store(packed, block, n_blocks, x, d, scales)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    x = load_block(rows + block * 16, inside, 16, 4)
    given = load_block(importance + block % (row_blocks * 16) * 16, inside, 16, 4)
    d, scales = search(x, importance_weights(x, given, WEIGHTED), None, flag, block, n_blocks, WEIGHTED)
    _store(packed, block, n_blocks, x, d, scales)


@triton.jit
def _store(packed, block, n_blocks, x, d, scales):
    """Codes by the chosen scales, packed. Block 8 r + 2 k + h holds codes 128 r + 32 k + 16 h and up."""
    S: tl.constexpr = block.shape[0] // 16
    inverse = reciprocal(d * scales)
    words = ()
    for i in tl.static_range(0, 16, 2):
        even = codes(x[i] * inverse, -4, 3).to(tl.int32) + 4
        odd = codes(x[i + 1] * inverse, -4, 3).to(tl.int32) + 4
        words += (even | (odd << 8),)
    both = columns(words, 3)
    first = tl.min(tl.reshape(block // 16, (S, 16)), axis=1)
    inside = (first < n_blocks)[:, None]
    start = packed + (first * 55)[:, None]

    eighth = tl.arange(0, 8)[None, :, None]
    high = tl.xor_sum(((tl.reshape(both, (S, 8, 16)) >> 2) & 0x0101) << eighth, axis=1)
    tl.store(start + tl.arange(0, 16)[None, :], high.to(tl.int16), mask=inside)
    k = tl.arange(0, 4)[None, :, None]
    low = tl.xor_sum((tl.reshape(both, (S * 2, 4, 16)) & 0x0303) << (k * 2), axis=1)
    tl.store(start + 16 + tl.arange(0, 32)[None, :], tl.reshape(low, (S, 32)).to(tl.int16), mask=inside)

    shifted = scales.to(tl.int32) + 32
    byte = tl.arange(0, 2)[None, None, None, :] * 8
    part = tl.arange(0, 2)[None, :, None, None]
    nibbles = (tl.reshape(shifted, (S, 2, 4, 2)) & 15) << (byte + part * 4)
    nibbles = tl.xor_sum(tl.xor_sum(nibbles, axis=3), axis=1)
    tl.store(start + 48 + tl.arange(0, 4)[None, :], nibbles.to(tl.int16), mask=inside)
    quarter = tl.arange(0, 4)[None, :, None, None]
    pairs = (tl.reshape(shifted, (S, 4, 2, 2)) >> 4) << (byte + quarter * 2)
    pairs = tl.xor_sum(tl.xor_sum(pairs, axis=3), axis=1)
    tl.store(start + 52 + tl.arange(0, 2)[None, :], pairs.to(tl.int16), mask=inside)
    tl.store(packed + first * 55 + 54, tl.max(tl.reshape(half_bits(d), (S, 16)), axis=1), mask=first < n_blocks)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 55
    start = packed + block[:, None] * 55
    d = half_value(tl.load(packed + block * 55 + 54, mask=inside, other=0))
    j = tl.arange(0, 16)[None, :]
    nibbles = tl.load(start + 48 + j % 8 // 2, mask=mask, other=0).to(tl.int32) >> (j % 2 * 8 + j // 8 * 4)
    pairs = tl.load(start + 52 + j % 4 // 2, mask=mask, other=0).to(tl.int32) >> (j % 2 * 8 + j // 4 * 2)
    step = d[:, None] * (((nibbles & 15) | ((pairs & 3) << 4)) - 32).to(tl.float32)

    # axes: super-block, run, k, word, byte
    high = tl.load(start + j, mask=mask, other=0).to(tl.int32)
    low = tl.load(start + 16 + tl.arange(0, 32)[None, :], mask=mask, other=0).to(tl.int32)
    run = tl.arange(0, 2)[None, :, None, None, None]
    k = tl.arange(0, 4)[None, None, :, None, None]
    byte = tl.arange(0, 2)[None, None, None, None, :] * 8
    pair = (tl.reshape(low, (BLOCKS, 2, 1, 16, 1)) >> (k * 2 + byte)) & 3
    top = (tl.reshape(high, (BLOCKS, 1, 1, 16, 1)) >> (run * 4 + k + byte)) & 1
    code = tl.reshape(pair | (top << 2), (BLOCKS, 16, 16)) - 4
    store_weights(weights, first, inside, step[:, :, None] * code.to(tl.float32))


# 8 super-blocks are 128 blocks of 16, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 8, 4)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 8, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 110] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), rows.shape[1] // DTYPE.block
    )


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 110] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
