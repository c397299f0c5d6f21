"""Q4_0 on a GPU: 32 weights share one fp16 scale, each is a nibble.

    block = | d: fp16 | 16 bytes |            18 bytes, which the kernels see as 9 16-bit words
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * (codes[i] - 8)

How the scale is chosen: symmetric_block.py. Same bytes as the reference. Source: ggml, block_q4_0.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q4_0
from ..reference import q4_0 as reference
from . import launch
from .blocks import load_tile, paired_nibbles, store_blocks, words_of
from .row_weights import row_knowledge
from .symmetric_block import encode_largest, encode_searched

DTYPE = Q4_0
LOW = tl.constexpr(int(reference.SYMMETRIC.low))
GRID = tl.constexpr(tuple(float(g) for g in reference.GRID))
OFFSETS = tl.constexpr(tuple(float(g) for g in reference.OFFSETS))
N_GRID, N_OFFSETS = tl.constexpr(len(reference.GRID)), tl.constexpr(len(reference.OFFSETS))
BLEND = tl.constexpr(float(reference.BLEND))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    d, code = encode_largest(load_tile(rows, first, block < n_blocks, 32), block, flag, LOW)
    store_blocks(packed, first, n_blocks, (d,), words_of(paired_nibbles(code), 2).to(tl.int16), ())


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, mean, row_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    d, code = encode_searched(
        rows, flag, n_blocks, importance, mean, row_blocks, block, LOW, GRID, N_GRID, OFFSETS, N_OFFSETS, BLEND
    )
    store_blocks(packed, first, n_blocks, (d,), words_of(paired_nibbles(code), 2).to(tl.int16), ())


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 9
    d = tl.load(packed + block * 9, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    column = tl.arange(0, 32)[None, :]
    word = tl.load(packed + (block[:, None] * 9 + 1 + (column % 16) // 2), mask=inside[:, None], other=0).to(tl.int32)
    code = (word >> (8 * (column % 2) + 4 * (column // 16))) & 15
    out = ((code - 8).to(tl.float32) * d[:, None]).to(weights.dtype.element_ty)
    tl.store(weights + first * 32 + (block[:, None] * 32 + column), out, mask=inside[:, None])


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "mean": "*fp32", "row_blocks": "i64"}, 128, 4
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 18] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *row_knowledge(rows, importance))


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 18] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
