"""TQ2_0 on a GPU: 256 ternary weights share one fp16 scale, each takes 2 bits.

    super-block = | 64 bytes | d: fp16 |            66 bytes, which the kernels see as 33 16-bit words
    for each half h of 128 weights, byte 32 h + l holds trit[128 h + 32 k + l] << 2 k for k = 0..3
    weight[i] = d * (trit[i] - 1)

The scale and the trits: ternary.py. Same bytes as the reference. Source: ggml, quantize_row_tq2_0_ref.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import TQ2_0
from . import launch
from .blocks import load_tile, magnitude_bits, store_blocks, store_tile, words_of
from .ternary import scale, trits

DTYPE = TQ2_0


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    x = load_tile(rows, first, block < n_blocks, 256)
    d, inverse = scale(tl.max(magnitude_bits(x), axis=1), block, flag)
    k = tl.arange(0, 4)[None, :, None]
    four = tl.reshape(trits(x, inverse[:, None]), (BLOCKS * 2, 4, 32)) << (2 * k)
    byte = tl.reshape(tl.sum(four, axis=1), (BLOCKS, 64))
    store_blocks(packed, first, n_blocks, (), words_of(byte, 2).to(tl.int16), (d,))


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 33 + block * 33
    d = tl.load(start + 32, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    column = tl.arange(0, 256)[None, :]
    word = start[:, None] + column // 128 * 16 + column % 32 // 2
    pairs = tl.load(word, mask=inside[:, None], other=0).to(tl.int32)
    trit = (pairs >> (8 * (column % 2) + 2 * (column % 128 // 32))) & 3
    store_tile(weights, first, inside, d[:, None] * (trit - 1).to(tl.float32))


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 16, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 66] uint8.

    Importance changes nothing. NonFiniteError, ScaleOverflowError.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 66] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
