"""E2M1, compiled: a code is a count of seven comparisons, which LLVM turns into selects without branches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference.e2m1 import MIDDLES, VALUES
from .jit import jit
from .tile import ZERO, Floats

__all__ = ["decode_pairs", "encode_pairs"]

M0, M1, M2, M3, M4, M5, M6 = MIDDLES
TABLE = np.array(VALUES)
EIGHT = np.int32(8)

Bytes = NDArray[np.uint8]


@jit
def encode_pairs(x: Floats, d: np.float32, packed: Bytes) -> None:
    """x[2 n] under the step d -> packed[n]; zeros where the step is 0."""
    half = packed.shape[0]
    if d == ZERO:
        packed[:] = 0
        return
    m0, m1, m2, m3, m4, m5, m6 = M0 * d, M1 * d, M2 * d, M3 * d, M4 * d, M5 * d, M6 * d
    for i in range(half):
        a, b = abs(x[i]), abs(x[half + i])
        low = np.int32(a > m0) + np.int32(a > m1) + np.int32(a > m2) + np.int32(a > m3)
        low = low + np.int32(a > m4) + np.int32(a > m5) + np.int32(a > m6)
        high = np.int32(b > m0) + np.int32(b > m1) + np.int32(b > m2) + np.int32(b > m3)
        high = high + np.int32(b > m4) + np.int32(b > m5) + np.int32(b > m6)
        low = low | EIGHT if x[i] < -m0 else low
        high = high | EIGHT if x[half + i] < -m0 else high
        packed[i] = np.uint8(low | high << 4)


@jit
def decode_pairs(packed: Bytes, d: np.float32, x: Floats) -> None:
    """packed[n] under the step d -> x[2 n]."""
    half = packed.shape[0]
    for i in range(half):
        x[i] = d * TABLE[packed[i] & 15]
        x[half + i] = d * TABLE[packed[i] >> 4]
