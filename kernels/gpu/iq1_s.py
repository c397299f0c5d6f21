"""IQ1_S on a GPU: 8 weights are one of 2048 points of -1, 0, 1; 32 share a 3-bit scale and a shift, 256 an fp16 number.

    super-block = | d: fp16 | 32 bytes: low 8 bits of the points | 8 words |            50 bytes, seen as 25 16-bit words
    word = | 4 x point's high bits: 3 | scale: 3 | shift: 1 |            the lowest field first
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))

The search (codebook_search.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import IQ1_S
from ..reference import iq1_s as reference
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

DTYPE = IQ1_S
FORMAT = constants(reference.BOOK)


@triton.jit(do_not_specialize=["n_blocks", "scanned", "nearest", "wide"])
def _encode(rows, packed, flag, n_blocks, scanned, nearest, wide, candidates, indexes, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    inside = block < n_blocks * 8
    mean, _ = moments(rows, block, inside, False, FORMAT)
    x = load_block(rows + block * 32, inside, 32, 5)
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
    block = tl.program_id(0).to(tl.int64) * (BLOCKS * 8) + tl.arange(0, BLOCKS * 8)
    inside = block < n_blocks * 8
    mean, fourth = moments(rows, block, inside, True, FORMAT)
    x = load_block(rows + block * 32, inside, 32, 5)
    given = load_block(importance + block % (row_blocks * 8) * 32, inside, 32, 5)
    weight = importance_weights(x, given, mean, fourth, FORMAT)
    _search(x, weight, packed, flag, block, n_blocks, scanned, nearest, wide, candidates, indexes)


@triton.jit
def _search(x, weight, packed, flag, block, n_blocks, scanned, nearest, wide, candidates, indexes):
    S: tl.constexpr = block.shape[0] // 8
    a, _ = split_signs(x, weight, FORMAT)
    d, scales = search(x, a, weight, scanned, nearest, candidates, flag, block, n_blocks, FORMAT)
    d, point = points(a, weight, d, scales, wide, candidates, indexes, FORMAT)
    point = tl.reshape(columns(point, 2), (S, 32))
    scale = tl.reshape(scales.to(tl.int32), (S, 8))
    half = tl.max(tl.reshape(half_bits(d), (S, 8)), axis=1)
    first = tl.min(tl.reshape(block // 8, (S, 8)), axis=1)
    inside = (first < n_blocks)[:, None]
    start = packed + (first * 25)[:, None]
    tl.store(start, half[:, None], mask=inside)
    tl.store(start + 1 + tl.arange(0, 16)[None, :], words_of(point & 255, 2).to(tl.int16), mask=inside)
    fourth = tl.reshape(point >> 8, (S, 8, 4))
    high = tl.xor_sum((fourth & 7) << (tl.arange(0, 4)[None, None, :] * 3), axis=2)
    shift = tl.max(fourth >> 3, axis=2)
    words = high | (scale << 12) | (shift << 15)
    tl.store(start + 17 + tl.arange(0, 8)[None, :], words.to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, grid, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 25
    start = packed + block[:, None] * 25
    d = half_value(tl.load(packed + block * 25, mask=inside, other=0))
    j = tl.arange(0, 8)[None, :]
    scale = field(start, 17 + j, 12, 3, mask).to(tl.float32)
    shift = 0.125 - 0.25 * field(start, 17 + j, 15, 1, mask).to(tl.float32)
    eight = tl.arange(0, 32)[None, :]
    low = field(start, 1 + eight // 2, eight % 2 * 8, 8, mask)
    high = field(start, 17 + eight // 4, eight % 4 * 3, 3, mask)
    step = d[:, None] * (2 * scale + 1)
    values = tl.reshape(look_up(grid, low | (high << 8)), (BLOCKS, 8, 32))
    store_weights(weights, first, inside, step[:, :, None] * (values + shift[:, :, None]))


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, parameters("*i16"), 16, 4, registers=255)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4, registers=255
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64", "grid": "*fp32"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 50] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    known = (reference.BOOK.scanned, reference.BOOK.nearest, reference.BOOK.wide, *tables(reference.BOOK, rows.device))
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, *known)
    relative = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *known, relative, rows.shape[1] // DTYPE.block)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 50] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype, grid_table("IQ1_S", packed.device))
