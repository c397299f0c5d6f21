"""Q2_K on a GPU: 256 weights are 16 blocks of 16, each with a 4-bit scale and a 4-bit min under two fp16 numbers.

    super-block = | 16 bytes: scale (low nibble) and min | 64 bytes: codes | d: fp16 | dmin: fp16 |
                  84 bytes, which the kernels see as 21 32-bit words
    code 128 r + 32 k + l:  bit pair k of byte l of run r's 32 bytes
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

The search (affine.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q2_K
from ..reference import q2_k as reference
from . import launch
from .affine import code, constants, importance_weights, plain_weights, search, stretched
from .blocks import half_bits
from .search import columns, load_block
from .super_block import half_value, store_weights

DTYPE = Q2_K
PLAIN, WEIGHTED = constants(reference.PLAIN), constants(reference.WEIGHTED)


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    x = load_block(rows + block * 16, block < n_blocks * 16, 16, 4)
    d, dmin, scales, mins = search(x, plain_weights(x, PLAIN), flag, block, n_blocks, PLAIN)
    _store(packed, block, n_blocks, x, d, dmin, scales, mins, PLAIN)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    x = load_block(rows + block * 16, inside, 16, 4)
    given = load_block(importance + block % (row_blocks * 16) * 16, inside, 16, 4)
    d, dmin, scales, mins = search(x, importance_weights(x, given, WEIGHTED), flag, block, n_blocks, WEIGHTED)
    _store(packed, block, n_blocks, x, d, dmin, scales, mins, WEIGHTED)


@triton.jit
def _store(packed, block, n_blocks, x, d, dmin, scales, mins, FORMAT: tl.constexpr):
    """Codes by the chosen scales, packed. Block 8 r + 2 k + h holds codes 128 r + 32 k + 16 h and up."""
    S: tl.constexpr = block.shape[0] // 16
    q = code(x, d, dmin, scales, mins, FORMAT)
    words = ()
    for i in tl.static_range(0, 16, 4):
        words += (q[i] | (q[i + 1] << 8) | (q[i + 2] << 16) | (q[i + 3] << 24),)
    first = tl.min(tl.reshape(block // 16, (S, 16)), axis=1)
    inside = first < n_blocks
    start = packed + (first * 21)[:, None]

    k = tl.arange(0, 4)[None, :, None]
    runs = tl.xor_sum(tl.reshape(columns(words, 2), (S * 2, 4, 8)) << (k * 2), axis=1)
    tl.store(start + 4 + tl.arange(0, 16)[None, :], tl.reshape(runs, (S, 16)), mask=inside[:, None])
    byte = tl.reshape(scales.to(tl.int32) | (mins.to(tl.int32) << 4), (S, 4, 4)) << (tl.arange(0, 4)[None, None, :] * 8)
    tl.store(start + tl.arange(0, 4)[None, :], tl.xor_sum(byte, axis=2), mask=inside[:, None])
    d, dmin = stretched(d, FORMAT), stretched(dmin, FORMAT)
    halves = (half_bits(d).to(tl.int32) & 0xFFFF) | (half_bits(dmin).to(tl.int32) << 16)
    tl.store(packed + first * 21 + 20, tl.max(tl.reshape(halves, (S, 16)), axis=1), mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 21
    start = packed + block[:, None] * 21
    halves = tl.load(packed + block * 21 + 20, mask=inside, other=0)
    j = tl.arange(0, 16)[None, :]
    both = tl.load(start + j // 4, mask=mask, other=0) >> (j % 4 * 8)
    step = half_value(halves)[:, None] * (both & 15).to(tl.float32)
    low = half_value(halves >> 16)[:, None] * ((both >> 4) & 15).to(tl.float32)

    # axes: super-block, run, k, word, byte
    runs = tl.reshape(tl.load(start + 4 + j, mask=mask, other=0), (BLOCKS, 2, 1, 8, 1))
    shift = tl.arange(0, 4)[None, None, :, None, None] * 2 + tl.arange(0, 4)[None, None, None, None, :] * 8
    code = tl.reshape((runs >> shift) & 3, (BLOCKS, 16, 16)).to(tl.float32)
    store_weights(weights, first, inside, step[:, :, None] * code - low[:, :, None])


# 8 super-blocks are 128 blocks of 16, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64"}, 8, 4)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 8, 4)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 84] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), rows.shape[1] // DTYPE.block
    )


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 84] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
