"""The 16 levels of IQ4_NL and IQ4_XS: the level of a code, and the level nearest to a number.

level(code)     a byte of one of two 64-bit tables: shifts, no memory
tables          int8[2, 481], in memory: of low + i / 2 the nearest level, and that level's code
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import triton
import triton.language as tl

from ..reference import iq4_nl as reference


def _table(levels):
    """8 levels as the bytes of a signed 64-bit integer."""
    return int.from_bytes(bytes(level & 0xFF for level in levels), "little", signed=True)


LOW, HIGH = tl.constexpr(float(reference.LEVELS[0])), tl.constexpr(float(reference.LEVELS[-1]))
FIRST_8, LAST_8 = tl.constexpr(_table(reference.LEVELS[:8])), tl.constexpr(_table(reference.LEVELS[8:]))
SPAN = tl.constexpr(len(reference.SYMMETRIC.nearest))


@cache
def tables(device: torch.device) -> torch.Tensor:
    """The tables that `nearest` reads, on `device`: 15 comparisons a number took a minute to compile."""
    levels = reference.SYMMETRIC.nearest
    codes = reference.LEVEL_CODES[(levels - reference.SYMMETRIC.low).astype(int)]
    return torch.from_numpy(np.stack([levels.astype(np.int8), codes.astype(np.int8)])).to(device)


@triton.jit
def level(code):
    """int32 codes -> float32."""
    table = tl.where(code < 8, FIRST_8, LAST_8)
    return (table >> (8 * (code & 7)).to(tl.int64)).to(tl.int8).to(tl.float32)


@triton.jit
def nearest(table, value):
    """The nearest level, float32."""
    return tl.load(table + _twice_above_low(value)).to(tl.float32)


@triton.jit
def nearest_code(table, value):
    """The code of the nearest level, int32."""
    return tl.load(table + SPAN + _twice_above_low(value)).to(tl.int32)


@triton.jit
def _twice_above_low(value):
    return ((tl.minimum(tl.maximum(value, LOW), HIGH) - LOW) * 2).to(tl.int32)
