"""BF16: two bytes, the upper half of a float32, little-endian.

| sign: 1 | exponent: 8, bias 127 | fraction: 7 |     float32's range, three decimal digits
bits16 = (bits32 + 0x7FFF + (bits32 >> 16 & 1)) >> 16     to nearest, half to even
"""

from __future__ import annotations

import numpy as np

from ...dtypes import BF16 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite, refuse_overflow

__all__ = ["DTYPE", "decode", "encode"]

OVERFLOW = np.uint32(0x7F7F8000).view(np.float32)  # the least float32 that rounds to infinity


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns * 2] uint8, to nearest, half to even. Importance changes nothing.

    NonFiniteError for NaN and infinity, ScaleOverflowError for what would round to infinity (3.39e38 and beyond).
    """
    refuse_non_finite(rows)
    refuse_overflow(rows, OVERFLOW)
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))) >> np.uint32(16)
    packed: Packed = rounded.astype("<u2").view(np.uint8)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns * 2] uint8 -> [n, columns] float32, exactly."""
    bits = np.ascontiguousarray(packed).view("<u2").astype(np.uint32) << np.uint32(16)
    rows: Rows = bits.view(np.float32)
    return rows
