"""F16: two bytes, IEEE 754 binary16, little-endian.

| sign: 1 | exponent: 5, bias 15 | fraction: 10 |     largest 65504, smallest 2^-24
"""

from __future__ import annotations

import numpy as np

from ...dtypes import F16 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite, refuse_overflow

__all__ = ["DTYPE", "decode", "encode"]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns * 2] uint8, to nearest, half to even. Importance changes nothing.

    NonFiniteError for NaN and infinity, ScaleOverflowError for what would round to infinity (65520 and beyond).
    """
    refuse_non_finite(rows)
    refuse_overflow(rows)
    return np.ascontiguousarray(rows).astype("<f2").view(np.uint8)


def decode(packed: Packed) -> Rows:
    """[n, columns * 2] uint8 -> [n, columns] float32, exactly."""
    return np.ascontiguousarray(packed).view("<f2").astype(np.float32)
