"""Q5_0 on a GPU: 32 weights share one fp16 scale, each is a code of 5 bits.

    block = | d: fp16 | 20 bytes: codes (fifth_bits.py) |            22 bytes, which the kernels see as 11 16-bit words
    weight[i] = d * (codes[i] - 16)

How the scale is chosen: symmetric_block.py. Same bytes as the reference. Source: ggml, block_q5_0.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q5_0
from ..reference import q5_0 as reference
from . import launch
from .blocks import load_tile, paired_nibbles, store_blocks, store_tile, words_of
from .fifth_bits import fifth_bits, with_fifth_bits
from .row_weights import row_knowledge
from .symmetric_block import encode_largest, encode_searched

DTYPE = Q5_0
LOW = tl.constexpr(int(reference.SYMMETRIC.low))
GRID = tl.constexpr(tuple(float(g) for g in reference.SYMMETRIC.grid))
OFFSETS = tl.constexpr(tuple(float(g) for g in reference.SYMMETRIC.offsets))
N_GRID, N_OFFSETS = tl.constexpr(len(reference.SYMMETRIC.grid)), tl.constexpr(len(reference.SYMMETRIC.offsets))
BLEND = tl.constexpr(float(reference.SYMMETRIC.blend))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    d, code = encode_largest(load_tile(rows, first, block < n_blocks, 32), block, flag, LOW)
    _store(packed, first, n_blocks, d, code)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, mean, row_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    d, code = encode_searched(
        rows, flag, n_blocks, importance, mean, row_blocks, block, LOW, GRID, N_GRID, OFFSETS, N_OFFSETS, BLEND
    )
    _store(packed, first, n_blocks, d, code)


@triton.jit
def _store(packed, first, n_blocks, d, code):
    fifths = fifth_bits(code)
    heads = (d, fifths.to(tl.int16), (fifths >> 16).to(tl.int16))
    store_blocks(packed, first, n_blocks, heads, words_of(paired_nibbles(code & 15), 2).to(tl.int16), ())


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 11 + block * 11
    mask = inside[:, None]
    d = tl.load(start, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    low = tl.load(start + 1, mask=inside, other=0).to(tl.int32) & 0xFFFF
    high = tl.load(start + 2, mask=inside, other=0).to(tl.int32)
    column = tl.arange(0, 32)[None, :]
    word = tl.load(start[:, None] + 3 + (column % 16) // 2, mask=mask, other=0).to(tl.int32)
    nibble = (word >> (8 * (column % 2) + 4 * (column // 16))) & 15
    code = with_fifth_bits(nibble, (low | (high << 16))[:, None])
    store_tile(weights, first, inside, d[:, None] * (code - 16).to(tl.float32))


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "mean": "*fp32", "row_blocks": "i64"}, 128, 4
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 22] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(ENCODE_WEIGHTED, DTYPE, rows, *row_knowledge(rows, importance))


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 22] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
