"""Q8_0 on a GPU: 32 weights share one fp16 scale, each is a signed byte.

    block = | d: fp16 | 32 x int8 |            34 bytes, which the kernels see as 17 16-bit words
    weight[i] = d * codes[i],   d = max|x| / 127,   codes[i] = round(x[i] * (1 / d)), halves away from zero

The output of a program is one run of words, written by position: a gather puts scales and codes in file order, so
that a thread stores 16 adjacent bytes. Same bytes as the reference. Source: ggml, quantize_row_q8_0_ref.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q8_0
from . import launch
from .blocks import (
    INFINITY_BITS,
    flag_blocks,
    half_bits,
    is_half_infinity,
    magnitude_bits,
    normal_reciprocal,
    round_away,
    store_blocks,
)

DTYPE = Q8_0


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    place = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    x = tl.load(rows + first * 32 + place, mask=inside[:, None], other=0.0).to(tl.float32)

    # one maximum over the bits serves the scale and the check, since NaN and Inf lie above every number
    bits = tl.max(magnitude_bits(x), axis=1)
    d = tl.div_rn(bits.to(tl.float32, bitcast=True), 127.0)
    half = half_bits(d)
    flag_blocks(flag, first + block, bits >= INFINITY_BITS, bits < 0, is_half_infinity(half))

    code = round_away(x * normal_reciprocal(d)[:, None])
    low, high = tl.split(tl.reshape(code, (BLOCKS, 16, 2)))
    store_blocks(packed, first, n_blocks, (half,), ((low & 0xFF) | (high << 8)).to(tl.int16), ())


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 17
    d = tl.load(packed + block * 17, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    words = tl.load(packed + (block[:, None] * 17 + 1 + tl.arange(0, 16)[None, :]), mask=inside[:, None], other=0)
    low = (words << 8) >> 8
    code = tl.reshape(tl.join(low, words >> 8), (BLOCKS, 32))
    place = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    out = (code.to(tl.float32) * d[:, None]).to(weights.dtype.element_ty)
    tl.store(weights + first * 32 + place, out, mask=inside[:, None])


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 34] uint8.

    Importance changes nothing. NonFiniteError, ScaleOverflowError; ModelError for columns that do not divide by 32.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 34] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
