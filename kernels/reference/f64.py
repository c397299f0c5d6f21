"""F64: eight bytes, IEEE 754 binary64, little-endian. Read for the sake of old checkpoints."""

from __future__ import annotations

import numpy as np

from ...dtypes import F64 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite

__all__ = ["DTYPE", "decode", "encode"]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns * 8] uint8, exactly; NonFiniteError. Importance changes nothing."""
    refuse_non_finite(rows)
    return np.ascontiguousarray(rows, "<f8").view(np.uint8)


def decode(packed: Packed) -> Rows:
    """[n, columns * 8] uint8 -> [n, columns] float32, to nearest even; beyond float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(packed).view("<f8").astype(np.float32)
