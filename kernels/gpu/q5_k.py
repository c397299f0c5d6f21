"""Q5_K on a GPU: 256 weights are 8 blocks of 32, each with a 6-bit scale and a 6-bit min under two fp16 numbers.

    super-block = | d: fp16 | dmin: fp16 | 12 bytes: scales, mins (scales6.py) | 32 bytes: high bits | 128 bytes: low |
                  176 bytes, which the kernels see as 44 32-bit words
    code[j, i]:  nibble j % 2 of byte i of run j / 2's 32 low bytes, and bit j of high byte i
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

The search (affine.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q5_K
from ..reference import q5_k as reference
from . import launch
from .affine import code, constants, importance_weights, plain_weights, search, stretched
from .blocks import half_bits
from .scales6 import load_scales, scale_words
from .search import columns, load_block
from .super_block import store_weights

DTYPE = Q5_K
FORMAT = constants(reference.AFFINE)


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    x = load_block(rows + block * 32, block < n_blocks * 8, 32, 5)
    d, dmin, scales, mins = search(x, plain_weights(x, FORMAT), flag, block, n_blocks, FORMAT)
    _store(packed, block, n_blocks, x, d, dmin, scales, mins)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    inside = block < n_blocks * 8
    x = load_block(rows + block * 32, inside, 32, 5)
    given = load_block(importance + block % (row_blocks * 8) * 32, inside, 32, 5)
    d, dmin, scales, mins = search(x, importance_weights(x, given, FORMAT), flag, block, n_blocks, FORMAT)
    _store(packed, block, n_blocks, x, d, dmin, scales, mins)


@triton.jit
def _store(packed, block, n_blocks, x, d, dmin, scales, mins):
    """Codes by the chosen scales, packed."""
    S: tl.constexpr = block.shape[0] // 8
    q = code(x, d, dmin, scales, mins, FORMAT)
    words = ()
    for i in tl.static_range(0, 32, 4):
        words += (q[i] | (q[i + 1] << 8) | (q[i + 2] << 16) | (q[i + 3] << 24),)
    both = columns(words, 3)
    first = tl.min(tl.reshape(block // 8, (S, 8)), axis=1)
    inside = first < n_blocks
    start = packed + (first * 44)[:, None]

    j = tl.arange(0, 8)[None, :, None]
    high = tl.xor_sum(((tl.reshape(both, (S, 8, 8)) >> 4) & 0x01010101) << j, axis=1)
    tl.store(start + 4 + tl.arange(0, 8)[None, :], high, mask=inside[:, None])
    even, odd = tl.split(tl.permute(tl.reshape(both & 0x0F0F0F0F, (S * 4, 2, 8)), (0, 2, 1)))
    nibbles = tl.reshape(even | (odd << 4), (S, 32))
    tl.store(start + 12 + tl.arange(0, 32)[None, :], nibbles, mask=inside[:, None])
    d, dmin = stretched(d, FORMAT), stretched(dmin, FORMAT)
    halves = (half_bits(d).to(tl.int32) & 0xFFFF) | (half_bits(dmin).to(tl.int32) << 16)
    low, high, rest = scale_words(tl.reshape(scales, (S, 8)), tl.reshape(mins, (S, 8)))
    head = (tl.max(tl.reshape(halves, (S, 8)), axis=1), low, high, rest)
    tl.store(start + tl.arange(0, 4)[None, :], columns(head, 2), mask=inside[:, None])


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 44
    start = packed + block[:, None] * 44
    step, low = load_scales(packed + block * 44, inside)

    # axes: super-block, run, nibble, word, byte; block 2 * run + nibble
    high = tl.reshape(tl.load(start + 4 + tl.arange(0, 8)[None, :], mask=mask, other=0), (BLOCKS, 1, 1, 8, 1))
    nibbles = tl.reshape(tl.load(start + 12 + tl.arange(0, 32)[None, :], mask=mask, other=0), (BLOCKS, 4, 1, 8, 1))
    run = tl.arange(0, 4)[None, :, None, None, None]
    nibble = tl.arange(0, 2)[None, None, :, None, None]
    byte = tl.arange(0, 4)[None, None, None, None, :] * 8
    code = ((nibbles >> (nibble * 4 + byte)) & 15) | (((high >> (run * 2 + nibble + byte)) & 1) << 4)
    code = tl.reshape(code, (BLOCKS, 8, 32)).to(tl.float32)
    store_weights(weights, first, inside, step[:, :, None] * code - low[:, :, None])


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64"}, 16, 4)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 176] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), rows.shape[1] // DTYPE.block
    )


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 176] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
