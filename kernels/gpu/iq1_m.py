"""IQ1_M on a GPU: 8 weights are one of 2048 points of -1, 0, 1 and a shift; 16 share a 3-bit scale, 256 an fp16 number.

    super-block = | 32 bytes: low 8 bits of the points | 32 x 4 bits | 4 x 16 bits |            56 bytes, 14 32-bit words
    4 bits = | point's high bits: 3 | shift: 1 |        16 bits = | 4 x scale: 3 | a quarter of d: 4 |        the lowest first
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))        IQ1_S's grid

The search (codebook_search.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import IQ1_M
from ..reference import iq1_m as reference
from . import launch
from .blocks import half_bits, words_of
from .codebook import field, grid_table, look_up
from .codebook_search import (
    constants,
    importance_weights,
    moments,
    parameters,
    plain_weights,
    points,
    search,
    split_signs,
    tables,
)
from .search import columns, load_block
from .super_block import half_value, store_weights

DTYPE = IQ1_M
FORMAT = constants(reference.BOOK)


@triton.jit(do_not_specialize=["n_blocks", "scanned", "nearest", "wide"])
def _encode(rows, packed, flag, n_blocks, scanned, nearest, wide, candidates, indexes, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    mean, _ = moments(rows, block, inside, False, FORMAT)
    x = load_block(rows + block * 16, inside, 16, 4)
    weight = plain_weights(x, mean, FORMAT)
    _search(x, weight, packed, flag, block, n_blocks, scanned, nearest, wide, candidates, indexes)


@triton.jit(do_not_specialize=["n_blocks", "scanned", "nearest", "wide", "row_blocks"])
def _encode_weighted(
    rows,
    packed,
    flag,
    n_blocks,
    scanned,
    nearest,
    wide,
    candidates,
    indexes,
    importance,
    row_blocks,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 16) + tl.arange(0, BLOCKS * 16)
    inside = block < n_blocks * 16
    mean, fourth = moments(rows, block, inside, True, FORMAT)
    x = load_block(rows + block * 16, inside, 16, 4)
    given = load_block(importance + block % (row_blocks * 16) * 16, inside, 16, 4)
    weight = importance_weights(x, given, mean, fourth, FORMAT)
    _search(x, weight, packed, flag, block, n_blocks, scanned, nearest, wide, candidates, indexes)


@triton.jit
def _search(x, weight, packed, flag, block, n_blocks, scanned, nearest, wide, candidates, indexes):
    S: tl.constexpr = block.shape[0] // 16
    a, _ = split_signs(x, weight, FORMAT)
    d, scales = search(x, a, weight, scanned, nearest, candidates, flag, block, n_blocks, FORMAT)
    d, point = points(a, weight, d, scales, wide, candidates, indexes, FORMAT)
    point = tl.reshape(columns(point, 1), (S, 32))
    scale = tl.reshape(scales.to(tl.int32), (S, 16))
    half = tl.max(tl.reshape(half_bits(d), (S, 16)), axis=1)
    first = tl.min(tl.reshape(block // 16, (S, 16)), axis=1)
    inside = (first < n_blocks)[:, None]
    start = packed + (first * 14)[:, None]
    tl.store(start + tl.arange(0, 8)[None, :], words_of(point & 255, 4), mask=inside)
    high = tl.xor_sum(tl.reshape(point >> 8, (S, 4, 8)) << (tl.arange(0, 8)[None, None, :] * 4), axis=2)
    tl.store(start + 8 + tl.arange(0, 4)[None, :], high, mask=inside)
    # of 16 bits, four scales and a quarter of d; two such in a word
    eighth = tl.arange(0, 8)[None, None, :]
    triples = tl.xor_sum(tl.reshape(scale, (S, 2, 8)) << (eighth // 4 * 16 + eighth % 4 * 3), axis=2)
    word = tl.arange(0, 2)[None, :]
    quarters = (half.to(tl.int32)[:, None] & 0xFFFF) >> (word * 8)
    quarters = ((quarters & 15) << 12) | (((quarters >> 4) & 15) << 28)
    tl.store(start + 12 + word, triples | quarters, mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, grid, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 14
    start = packed + block[:, None] * 14
    lower = tl.load(packed + block * 14 + 12, mask=inside, other=0)
    upper = tl.load(packed + block * 14 + 13, mask=inside, other=0)
    d = ((lower >> 12) & 0x000F) | ((lower >> 24) & 0x00F0) | ((upper >> 4) & 0x0F00) | ((upper >> 16) & 0xF000)
    j = tl.arange(0, 16)[None, :]
    scale = field(start, 12 + j // 8, j // 4 % 2 * 16 + j % 4 * 3, 3, mask).to(tl.float32)
    eight = tl.arange(0, 32)[None, :]
    low = field(start, eight // 4, eight % 4 * 8, 8, mask)
    high = field(start, 8 + eight // 8, eight % 8 * 4, 4, mask)
    shift = 0.125 - 0.25 * (high >> 3).to(tl.float32)
    step = half_value(d)[:, None] * (2 * scale + 1)
    values = look_up(grid, low | ((high & 7) << 8)) + shift[:, :, None]
    store_weights(weights, first, inside, step[:, :, None] * tl.reshape(values, (BLOCKS, 16, 16)))


# 8 super-blocks are 128 blocks of 16, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, parameters("*i32"), 8, 4, registers=255)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 8, 4, registers=255
)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64", "grid": "*fp32"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 56] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    known = (reference.BOOK.scanned, reference.BOOK.nearest, reference.BOOK.wide, *tables(reference.BOOK, rows.device))
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, *known)
    relative = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *known, relative, rows.shape[1] // DTYPE.block)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 56] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype, grid_table("IQ1_S", packed.device))
