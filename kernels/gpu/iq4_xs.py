"""IQ4_XS on a GPU: 256 weights are 8 blocks of 32, each with a signed 6-bit scale under one fp16 number; IQ4_NL's levels.

    super-block = | d: fp16 | 16 bits: high bits of the scales | 32 bits: low nibbles | 8 x 4 words: codes |
                  136 bytes, which the kernels see as 34 32-bit words
    code[j, 16 h + i]:  nibble h of byte i of block j's 4 words
    scale[j] + 32:  nibble j of the 32 bits, and bit pair j of the 16
    weight[j, i] = (d * scale[j]) * LEVELS[code[j, i]]

The search (symmetric.py) is the reference's, and gives its bytes. Levels lie in tables in global memory, small enough for
a cache: `nearest` holds the reference's table of them, and then their codes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from ...dtypes import IQ4_XS
from ..reference import iq4_nl, iq4_xs
from . import launch
from .blocks import half_bits
from .search import columns, load_block, reciprocal
from .super_block import half_value, store_weights
from .symmetric import constants, importance_weights, place, plain_weights, search

DTYPE = IQ4_XS
FORMAT = constants(iq4_xs.SYMMETRIC)
N_NEAREST = tl.constexpr(len(iq4_xs.SYMMETRIC.nearest))


@cache
def _levels(device: torch.device) -> torch.Tensor:
    """float32[16] on `device`."""
    return torch.from_numpy(iq4_nl.VALUES).to(device)


@cache
def _nearest(device: torch.device) -> torch.Tensor:
    """The level nearest to low + i / 2, then its code: float32[2, N_NEAREST] on `device`."""
    nearest = iq4_xs.SYMMETRIC.nearest
    return torch.from_numpy(np.stack([nearest, np.searchsorted(iq4_nl.VALUES, nearest).astype(np.float32)])).to(device)


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, nearest, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    x = load_block(rows + block * 32, block < n_blocks * 8, 32, 5)
    d, scales = search(x, plain_weights(x, FORMAT), nearest, flag, block, n_blocks, FORMAT)
    _store(packed, block, n_blocks, x, d, scales, nearest)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, nearest, importance, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    inside = block < n_blocks * 8
    x = load_block(rows + block * 32, inside, 32, 5)
    given = load_block(importance + block % (row_blocks * 8) * 32, inside, 32, 5)
    d, scales = search(x, importance_weights(x, given, FORMAT), nearest, flag, block, n_blocks, FORMAT)
    _store(packed, block, n_blocks, x, d, scales, nearest)


@triton.jit
def _store(packed, block, n_blocks, x, d, scales, nearest):
    """Codes by the chosen scales, packed."""
    S: tl.constexpr = block.shape[0] // 8
    inverse = reciprocal(d * scales)
    words = ()
    for i in tl.static_range(0, 16, 4):
        word = tl.zeros_like(block).to(tl.int32)
        for k in tl.static_range(0, 4):
            word |= _code(x[i + k] * inverse, nearest) << (8 * k)
            word |= _code(x[i + k + 16] * inverse, nearest) << (8 * k + 4)
        words += (word,)
    first = tl.min(tl.reshape(block // 8, (S, 8)), axis=1)
    inside = first < n_blocks
    start = packed + first * 34
    codes = tl.reshape(columns(words, 2), (S, 32))
    tl.store(start[:, None] + 2 + tl.arange(0, 32)[None, :], codes, mask=inside[:, None])

    j = tl.arange(0, 8)[None, :]
    shifted = tl.reshape(scales.to(tl.int32) + 32, (S, 8))
    high = tl.xor_sum((shifted >> 4) << (j * 2), axis=1)
    half = tl.max(tl.reshape(half_bits(d), (S, 8)), axis=1).to(tl.int32) & 0xFFFF
    tl.store(start, half | (high << 16), mask=inside)
    tl.store(start + 1, tl.xor_sum((shifted & 15) << (j * 4), axis=1), mask=inside)


@triton.jit
def _code(value, nearest):
    """The code of the level nearest to a value."""
    return tl.load(nearest + N_NEAREST + place(value, FORMAT)).to(tl.int32)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, levels, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 34
    start = packed + block[:, None] * 34
    j = tl.arange(0, 8)[None, :]
    head = tl.load(packed + block * 34, mask=inside, other=0)
    nibbles = tl.load(packed + block * 34 + 1, mask=inside, other=0)
    scale = ((nibbles[:, None] >> (j * 4)) & 15) | (((head[:, None] >> (16 + j * 2)) & 3) << 4)
    step = half_value(head)[:, None] * (scale - 32).to(tl.float32)

    # axes: super-block, block, nibble, word, byte
    runs = tl.reshape(tl.load(start + 2 + tl.arange(0, 32)[None, :], mask=mask, other=0), (BLOCKS, 8, 1, 4, 1))
    shift = tl.arange(0, 2)[None, None, :, None, None] * 4 + tl.arange(0, 4)[None, None, None, None, :] * 8
    code = tl.reshape((runs >> shift) & 15, (BLOCKS, 8, 32))
    store_weights(weights, first, inside, step[:, :, None] * tl.load(levels + code))


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(
    _encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64", "nearest": "*fp32"}, 16, 4
)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64", "levels": "*fp32"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 136] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    nearest = _nearest(rows.device)
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, nearest)
    relative = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, nearest, relative, rows.shape[1] // DTYPE.block)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 136] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype, _levels(packed.device))
