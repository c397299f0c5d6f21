"""IQ4_NL on a GPU: 32 weights share one fp16 scale; a 4-bit code names one of 16 levels that lie closer together near 0.

    block = | d: fp16 | 16 bytes |            18 bytes, which the kernels see as 9 16-bit words
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * LEVELS[codes[i]]

The search is the reference's, with a block a thread, and gives its bytes. Levels and layout: ggml, block_iq4_nl.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import IQ4_NL
from ..reference import iq4_nl as reference
from ..reference import symmetric
from . import launch
from .blocks import flag_blocks, half_bits, is_half_infinity, paired_nibbles, store_blocks, store_tile, words_of
from .levels import level, nearest, nearest_code, tables
from .search import (
    columns,
    extremes,
    half,
    half_or,
    load_block,
    out_of_range,
    pick,
    reciprocal,
    signed_extreme,
    sum_of_squares,
)

DTYPE = IQ4_NL
GRID = tl.constexpr(tuple(float(g) for g in reference.SYMMETRIC.grid))
N_GRID = tl.constexpr(len(reference.SYMMETRIC.grid))
EVEN = tl.constexpr(float(reference.SYMMETRIC.even))
BLEND, FAINT = tl.constexpr(float(reference.SYMMETRIC.blend)), tl.constexpr(float(reference.SYMMETRIC.faint))
FAR = tl.constexpr(float(symmetric.FAR))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, table, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    x = load_block(rows + block * 32, block < n_blocks, 32, 5)
    even = EVEN * (sum_of_squares(x) * 0.03125)
    weight = ()
    for i in tl.static_range(0, 32):
        weight += (x[i] * x[i] + even,)
    _search(x, weight, table, packed, flag, first, block, n_blocks)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, table, importance, row_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    inside = block < n_blocks
    x = load_block(rows + block * 32, inside, 32, 5)
    given = load_block(importance + block % row_blocks * 32, inside, 32, 5)
    twice_mean = sum_of_squares(x) * 0.0625
    even = BLEND * tl.sqrt_rn(twice_mean)
    far = FAR * twice_mean
    weight = ()
    for i in tl.static_range(0, 32):
        square = x[i] * x[i]
        weight += (given[i] * tl.sqrt_rn(twice_mean + square) + tl.where(square < far, even, FAINT * even),)
    _search(x, weight, table, packed, flag, first, block, n_blocks)


@triton.jit
def _search(x, weight, table, packed, flag, first, block, n_blocks):
    """The scale of largest gain over the grid, fitted as if to one block of a super-block; fp16; codes by it."""
    low, high, finite = extremes(x)
    inverse = reciprocal(signed_extreme(low, high))
    best = tl.zeros_like(inverse)
    scale, mass = best, best
    for step in range(0, N_GRID):
        tried = pick(GRID, N_GRID, step) * inverse
        cross = tl.zeros_like(inverse)
        square = cross
        for i in tl.static_range(0, 32):
            q = nearest(table, x[i] * tried)
            wq = weight[i] * q
            cross += wq * x[i]
            square += wq * q
        fitted = cross * reciprocal(square)
        gain = cross * fitted
        better = gain > best
        best = tl.where(better, gain, best)
        scale = tl.where(better, fitted, scale)
        mass = tl.where(better, square, mass)
    first_d = half(scale)
    inside = block < n_blocks
    overflow = is_half_infinity(half_bits(first_d))
    flag_blocks(flag, block, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    cross = mass * scale
    fitted = cross * reciprocal(mass)
    d = half_or(tl.where(cross * fitted > 0, fitted, first_d), first_d)
    inverse = reciprocal(d)
    code = ()
    for i in tl.static_range(0, 32):
        code += (nearest_code(table, x[i] * inverse),)
    words = words_of(paired_nibbles(columns(code, 5)), 2).to(tl.int16)
    store_blocks(packed, first, n_blocks, (half_bits(d),), words, ())


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 9 + block * 9
    d = tl.load(start, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    column = tl.arange(0, 32)[None, :]
    word = tl.load(start[:, None] + 1 + (column % 16) // 2, mask=inside[:, None], other=0).to(tl.int32)
    code = (word >> (8 * (column % 2) + 4 * (column // 16))) & 15
    store_tile(weights, first, inside, d[:, None] * level(code))


ENCODE = launch.Launch(
    _encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64", "table": "*i8"}, 128, 4
)
ENCODE_WEIGHTED = launch.Launch(_encode_weighted, {**ENCODE.types, "importance": "*fp32", "row_blocks": "i64"}, 128, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 18] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows, tables(rows.device))
    given = launch.importance_of(rows, importance)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, tables(rows.device), given, rows.shape[1] // 32)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 18] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
