"""IQ2_XXS on a GPU: 8 weights are one of 256 points and signs; 32 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 8 x 4 words |            66 bytes, which the kernels see as 33 16-bit words
    4 words = | 4 x point: 8 | 4 x signs: 7 | scale: 4 |            the lowest field first; the eighth sign makes them even
    weight[i] = (d * (scale + 1/2) / 4) * sign * grid[point]

The search (codebook_search.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import IQ2_XXS
from ..reference import iq2_xxs as reference
from . import launch
from .blocks import half_bits, words_of
from .codebook import field, grid_table, look_up, store_points, with_parity, word_pair
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
from .super_block import half_value

DTYPE = IQ2_XXS
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
    a, signs = split_signs(x, weight, FORMAT)
    d, scales = search(x, a, weight, scanned, nearest, candidates, flag, block, n_blocks, FORMAT)
    d, point = points(a, weight, d, scales, wide, candidates, indexes, FORMAT)
    point = tl.reshape(columns(point, 2), (S, 32))
    signs = tl.reshape(columns(signs, 2), (S, 32))
    scale = tl.reshape(scales.to(tl.int32), (S, 8))
    half = tl.max(tl.reshape(half_bits(d), (S, 8)), axis=1)
    first = tl.min(tl.reshape(block // 8, (S, 8)), axis=1)
    inside = (first < n_blocks)[:, None]
    start = packed + (first * 33)[:, None]
    tl.store(start, half[:, None], mask=inside)
    low = tl.reshape(words_of(point, 4), (S, 8))
    eighth = tl.arange(0, 4)[None, None, :] * 7
    high = tl.xor_sum((tl.reshape(signs, (S, 8, 4)) & 127) << eighth, axis=2) | (scale << 28)
    pairs = tl.reshape(tl.join(low, high), (S, 16))
    words = tl.reshape(tl.join(pairs & 0xFFFF, pairs >> 16), (S, 32))
    tl.store(start + 1 + tl.arange(0, 32)[None, :], words.to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, grid, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 33
    start = packed + block[:, None] * 33
    d = half_value(tl.load(packed + block * 33, mask=inside, other=0))
    j = tl.arange(0, 8)[None, :]
    scale = field(start, 4 + 4 * j, 12, 4, mask).to(tl.float32)
    eight = tl.arange(0, 32)[None, :]
    words = 1 + eight // 4 * 4
    point = field(start, words + eight % 4 // 2, eight % 2 * 8, 8, mask)
    signs = with_parity((word_pair(start, words + 2, mask) >> (eight % 4 * 7)) & 127)
    step = d[:, None] * (scale + 0.5) * 0.25
    store_points(weights, first, inside, look_up(grid, point), signs, step)


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, parameters("*i16"), 16, 4, registers=255)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4, registers=255
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64", "grid": "*fp32"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 66] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    known = (reference.BOOK.scanned, reference.BOOK.nearest, reference.BOOK.wide, *tables(reference.BOOK, rows.device))
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, *known)
    relative = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *known, relative, rows.shape[1] // DTYPE.block)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 66] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype, grid_table("IQ2_XXS", packed.device))
