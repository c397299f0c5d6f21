"""IQ3_S on a GPU: 4 weights are one of 512 points and signs; 32 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 64 bytes: low 8 bits of points | 8 bytes: high bits | 32 bytes of signs | 4 bytes of scales |
                  110 bytes, which the kernels see as 55 16-bit words
    weight[i] = (d * (2 * scale + 1)) * sign * grid[point]

The search (codebook_search.py) is the reference's, and gives its bytes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import IQ3_S
from ..reference import iq3_s as reference
from . import launch
from .blocks import half_bits, words_of
from .codebook import field, grid_table, look_up, store_points
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

DTYPE = IQ3_S
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
    point = tl.reshape(columns(point, 3), (S, 64))
    signs = tl.reshape(columns(signs, 2), (S, 32))
    scale = tl.reshape(scales.to(tl.int32), (S, 8))
    half = tl.max(tl.reshape(half_bits(d), (S, 8)), axis=1)
    first = tl.min(tl.reshape(block // 8, (S, 8)), axis=1)
    inside = (first < n_blocks)[:, None]
    start = packed + (first * 55)[:, None]
    tl.store(start, half[:, None], mask=inside)
    tl.store(start + 1 + tl.arange(0, 32)[None, :], words_of(point & 255, 2).to(tl.int16), mask=inside)
    high = tl.xor_sum(tl.reshape(point >> 8, (S, 4, 16)) << tl.arange(0, 16)[None, None, :], axis=2)
    tl.store(start + 33 + tl.arange(0, 4)[None, :], high.to(tl.int16), mask=inside)
    tl.store(start + 37 + tl.arange(0, 16)[None, :], words_of(signs, 2).to(tl.int16), mask=inside)
    nibbles = tl.xor_sum(tl.reshape(scale, (S, 2, 4)) << (tl.arange(0, 4)[None, None, :] * 4), axis=2)
    tl.store(start + 53 + tl.arange(0, 2)[None, :], nibbles.to(tl.int16), mask=inside)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, grid, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    mask = inside[:, None]
    packed += first * 55
    start = packed + block[:, None] * 55
    d = half_value(tl.load(packed + block * 55, mask=inside, other=0))
    j = tl.arange(0, 8)[None, :]
    scale = field(start, 53 + j // 4, j % 4 * 4, 4, mask).to(tl.float32)
    four = tl.arange(0, 64)[None, :]
    low = field(start, 1 + four // 2, four % 2 * 8, 8, mask)
    high = field(start, 33 + four // 16, four % 16, 1, mask)
    eight = tl.arange(0, 32)[None, :]
    signs = field(start, 37 + eight // 2, eight % 2 * 8, 8, mask)
    step = d[:, None] * (2 * scale + 1)
    store_points(weights, first, inside, look_up(grid, low | (high << 8)), signs, step)


# 16 super-blocks are 128 blocks of 32, one for each thread of 4 warps
ENCODE = launch.Launch(_encode, parameters("*i16"), 16, 4, registers=255)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 16, 4, registers=255
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64", "grid": "*fp32"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 110] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    known = (reference.BOOK.scanned, reference.BOOK.nearest, reference.BOOK.wide, *tables(reference.BOOK, rows.device))
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, *known)
    relative = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *known, relative, rows.shape[1] // DTYPE.block)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 110] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype, grid_table("IQ3_S", packed.device))
