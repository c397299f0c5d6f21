"""MXFP4 on a GPU: 32 weights share a power of two, each is a 4-bit float.

    block = | e: E8M0 | 16 bytes: E2M1 codes |            17 bytes, an odd number: the kernels see bytes
    byte i holds code[i] (low nibble) and code[i + 16] (high nibble)
    weight[i] = step * value[code[i]],  step = 2^(e - 128),  e = floor(log2(max|x|)) - 2 + 127, at least 0

Same bytes as the reference, which says how the logarithm rounds. Source: ggml, quantize_row_mxfp4_ref.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import MXFP4
from ..reference.mxfp4 import ROUNDS_UP
from . import launch
from .blocks import INFINITY_BITS, flag_blocks, load_tile, magnitude_bits, paired_nibbles, store_blocks, store_tile
from .e2m1 import doubled, nearest

DTYPE = MXFP4
# of the float32 just below 2^-(2^i), how many count as that power; the same up to the next i, and below 2^(2^i + 1)
SHORT_OF_POWER = tl.constexpr(tuple(int(ROUNDS_UP[126 - (1 << i)]) for i in range(7)))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    x = load_tile(rows, first, block < n_blocks, 32)
    bits = tl.max(magnitude_bits(x), axis=1)
    flag_blocks(flag, block, bits >= INFINITY_BITS, bits < 0, bits < 0)
    e = _power(bits)
    code = paired_nibbles(nearest(x, _step(e)))
    store_blocks(packed, first, n_blocks, (e.to(tl.uint8),), code.to(tl.uint8), ())


@triton.jit
def _power(bits):
    """The bits of max|x| -> e, int32[B]."""
    biased = bits >> 23
    power = biased - 126
    distance = tl.where(power > 0, power - 1, -power)
    rounds_up = tl.zeros_like(bits)
    for i in tl.static_range(0, 7):
        rounds_up = tl.where(distance >= (1 << i), SHORT_OF_POWER[i], rounds_up)
    short = (1 << 23) - (bits & 0x7FFFFF)
    return tl.maximum(biased + (short <= rounds_up).to(tl.int32) - 2, 0)


@triton.jit
def _step(e):
    """2^(e - 128), by its bits: the two least are subnormal."""
    bits = tl.where(e < 2, (1 << 21) << tl.minimum(e, 1), (tl.maximum(e, 1) - 1) << 23)
    return bits.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 17 + block * 17
    step = _step(tl.load(start, mask=inside, other=0).to(tl.int32))
    column = tl.arange(0, 32)[None, :]
    byte = tl.load(start[:, None] + 1 + column % 16, mask=inside[:, None], other=0).to(tl.int32)
    store_tile(weights, first, inside, step[:, None] * doubled((byte >> (4 * (column // 16))) & 15))


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*u8", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
DECODE = launch.Launch(_decode, {"packed": "*u8", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 17] uint8; NonFiniteError.

    Importance changes nothing.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 17] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
