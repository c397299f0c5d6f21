"""Q6_K on a GPU: 256 weights in 16 blocks of 16, each with an 8-bit signed scale.

    block = | 128 bytes: low nibbles | 64 bytes: high bit pairs | 16 x int8 scales | d: fp16 |   210 bytes, 105 16-bit words
    of each 128 weights, i = 32q + l:  code = nibble q / 2 of low byte 32 (q % 2) + l, and bit pair q of high byte l
    weight[i] = d * scale[i / 16] * (codes[i] - 32)
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q6_K
from . import launch

DTYPE = Q6_K


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 105
    mask = inside[:, None]
    head = block[:, None] * 105
    low = tl.load(packed + head + tl.arange(0, 64)[None, :], mask=mask, other=0).to(tl.int32)
    high = tl.load(packed + head + 64 + tl.arange(0, 32)[None, :], mask=mask, other=0).to(tl.int32)
    scale = tl.load(packed + head + 96 + tl.arange(0, 16)[None, :] // 2, mask=mask, other=0)
    scale = (scale << (8 - 8 * (tl.arange(0, 16)[None, :] % 2)).to(tl.int16)) >> 8
    d = tl.load(packed + block * 105 + 104, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)

    # axes: block, 128 weights, q / 2, q % 2, word, byte
    upper = tl.arange(0, 2)[None, None, :, None, None, None]
    lower = tl.arange(0, 2)[None, None, None, :, None, None]
    byte = tl.arange(0, 2)[None, None, None, None, None, :]
    nibble = (tl.reshape(low, (BLOCKS, 2, 1, 2, 16, 1)) >> (upper * 4 + byte * 8)) & 15
    pair = (tl.reshape(high, (BLOCKS, 2, 1, 1, 16, 1)) >> (upper * 4 + lower * 2 + byte * 8)) & 3
    code = tl.reshape(nibble | (pair << 4), (BLOCKS, 16, 16)) - 32

    out = (d[:, None] * scale.to(tl.float32))[:, :, None] * code.to(tl.float32)
    place = tl.arange(0, 16)[None, :, None] * 16 + tl.arange(0, 16)[None, None, :]
    place += block[:, None, None] * 256
    tl.store(weights + first * 256 + place, out.to(weights.dtype.element_ty), mask=inside[:, None, None])


DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 8, 4)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 210] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
