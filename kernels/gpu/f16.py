"""F16 on a GPU: two bytes, IEEE 754 binary16, little-endian.

    | sign: 1 | exponent: 5, bias 15 | fraction: 10 |     largest 65504, smallest 2^-24

To nearest, half to even. Every number is a block of its own. Same bytes as the reference.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import F16
from ..reference.search import HALF_OVERFLOW
from . import launch
from .blocks import flag_run, half_bits, load_run, magnitude_bits, store_run, widen

DTYPE = F16
OVERFLOW = tl.constexpr(int(HALF_OVERFLOW.view("uint32")))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    x = widen(load_run(rows, first, n_blocks, BLOCKS))
    flag_run(flag, first, magnitude_bits(x), OVERFLOW)
    store_run(packed, first, n_blocks, half_bits(x))


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    value = widen(load_run(packed, first, n_blocks, BLOCKS).to(tl.float16, bitcast=True))
    store_run(weights, first, n_blocks, value.to(weights.dtype.element_ty))


ENCODE = launch.Launch(
    _encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 1024, 4, limit=float(HALF_OVERFLOW)
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 1024, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns * 2] uint8.

    Importance changes nothing. NonFiniteError, ScaleOverflowError for what would round to infinity.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns * 2] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
