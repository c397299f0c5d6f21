"""F16, compiled: narrowing and its refusal of NaN, infinity and overflow in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import F16 as DTYPE
from ..reference.checks import refuse_values
from ..reference.search import HALF_OVERFLOW
from ..scheme import Packed, Rows
from .half import HALF_OVERFLOW_BITS, MAGNITUDE, narrow_half, widen_half
from .jit import jit

__all__ = ["DTYPE", "decode", "encode"]

Floats = NDArray[np.float32]
Halves = NDArray[np.uint16]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns * 2] uint8."""
    values = np.ascontiguousarray(rows)
    halves = np.empty(values.shape, np.uint16)
    if _encode(values.reshape(-1), halves.reshape(-1)) >= HALF_OVERFLOW_BITS:
        refuse_values(values, HALF_OVERFLOW)
    return halves.astype("<u2", copy=False).view(np.uint8)


def decode(packed: Packed) -> Rows:
    """[n, columns * 2] uint8 -> [n, columns] float32, exactly."""
    halves = np.ascontiguousarray(packed).view("<u2").astype(np.uint16, copy=False)
    rows = np.empty(halves.shape, np.float32)
    _decode(halves.reshape(-1), rows.reshape(-1))
    return rows


@jit
def _encode(values: Floats, halves: Halves) -> np.uint32:
    """Narrow, and return the bits of the largest magnitude."""
    largest: np.uint32 = np.uint32(0)
    for i in range(values.shape[0]):
        largest = max(largest, np.uint32(np.float32(values[i]).view(np.uint32) & MAGNITUDE))
        halves[i] = narrow_half(values[i])
    return largest


@jit
def _decode(halves: Halves, values: Floats) -> None:
    for i in range(halves.shape[0]):
        values[i] = widen_half(np.uint32(halves[i]))
