"""F32: four bytes, IEEE 754 binary32, little-endian. What every other format decodes to."""

from __future__ import annotations

import numpy as np

from ...dtypes import F32 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite

__all__ = ["DTYPE", "decode", "encode"]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns * 4] uint8, bit for bit; NonFiniteError. Importance changes nothing."""
    refuse_non_finite(rows)
    return np.ascontiguousarray(rows, "<f4").view(np.uint8)


def decode(packed: Packed) -> Rows:
    """[n, columns * 4] uint8 -> [n, columns] float32: the same bits, the same memory where it is contiguous."""
    return np.ascontiguousarray(packed).view("<f4")
