"""BF16, compiled: narrowing and its refusal of NaN, infinity and overflow in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import BF16 as DTYPE
from ..reference.bf16 import OVERFLOW
from ..reference.checks import refuse_values
from ..scheme import Packed, Rows
from .half import BITS16, MAGNITUDE, narrow_bfloat
from .jit import jit

__all__ = ["DTYPE", "decode", "encode"]

Words = NDArray[np.uint32]
Halves = NDArray[np.uint16]

OVERFLOW_BITS = OVERFLOW.view(np.uint32)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns * 2] uint8."""
    values = np.ascontiguousarray(rows)
    halves = np.empty(values.shape, np.uint16)
    if _encode(values.view(np.uint32).reshape(-1), halves.reshape(-1)) >= OVERFLOW_BITS:
        refuse_values(values, OVERFLOW)
    return halves.astype("<u2", copy=False).view(np.uint8)


def decode(packed: Packed) -> Rows:
    """[n, columns * 2] uint8 -> [n, columns] float32, exactly."""
    halves = np.ascontiguousarray(packed).view("<u2").astype(np.uint16, copy=False)
    words = np.empty(halves.shape, np.uint32)
    _decode(halves.reshape(-1), words.reshape(-1))
    return words.view(np.float32)


@jit
def _encode(words: Words, halves: Halves) -> np.uint32:
    """Narrow, and return the bits of the largest magnitude."""
    largest: np.uint32 = np.uint32(0)
    for i in range(words.shape[0]):
        largest = max(largest, np.uint32(words[i] & MAGNITUDE))
        halves[i] = narrow_bfloat(words[i])
    return largest


@jit
def _decode(halves: Halves, words: Words) -> None:
    for i in range(halves.shape[0]):
        words[i] = np.uint32(halves[i]) << BITS16
