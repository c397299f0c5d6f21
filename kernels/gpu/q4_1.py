"""Q4_1 on a GPU: 32 weights share an fp16 scale and an fp16 low end, each is a nibble.

    block = | d: fp16 | m: fp16 | 16 bytes |            20 bytes, which the kernels see as 5 32-bit words
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * codes[i] + m

How the two are chosen: affine_block.py. Same bytes as the reference. Source: ggml, block_q4_1.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q4_1
from ..reference import q4_1 as reference
from . import launch
from .affine_block import encode_between, encode_searched, load_scales
from .blocks import load_tile, paired_nibbles, store_blocks, store_tile, words_of
from .row_weights import row_knowledge

DTYPE = Q4_1
TOP = tl.constexpr(int(reference.AFFINE.top))
GRID = tl.constexpr(tuple(float(g) for g in reference.AFFINE.grid))
GRID_INVERSE = tl.constexpr(tuple(float(1 / g) for g in reference.AFFINE.grid))
EDGES = tl.constexpr(tuple(float(e) for e in reference.AFFINE.edges))
N_GRID, N_EDGES = tl.constexpr(len(reference.AFFINE.grid)), tl.constexpr(len(reference.AFFINE.edges))
BLEND = tl.constexpr(float(reference.AFFINE.blend))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    scales, code = encode_between(load_tile(rows, first, block < n_blocks, 32), block, flag, TOP)
    _store(packed, first, n_blocks, scales, code)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, mean, row_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    scales, code = encode_searched(
        rows,
        flag,
        n_blocks,
        importance,
        mean,
        row_blocks,
        block,
        TOP,
        GRID,
        GRID_INVERSE,
        N_GRID,
        EDGES,
        N_EDGES,
        BLEND,
    )
    _store(packed, first, n_blocks, scales, code)


@triton.jit
def _store(packed, first, n_blocks, scales, code):
    store_blocks(packed, first, n_blocks, (scales,), words_of(paired_nibbles(code), 4), ())


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 5 + block * 5
    d, m = load_scales(start, inside)
    column = tl.arange(0, 32)[None, :]
    word = tl.load(start[:, None] + 1 + (column % 16) // 4, mask=inside[:, None], other=0)
    code = (word >> (8 * (column % 4) + 4 * (column // 16))) & 15
    store_tile(weights, first, inside, d[:, None] * code.to(tl.float32) + m[:, None])


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i32", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "mean": "*fp32", "row_blocks": "i64"}, 128, 4
)
DECODE = launch.Launch(_decode, {"packed": "*i32", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 20] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *row_knowledge(rows, importance))


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 20] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
