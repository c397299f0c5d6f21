"""Q8_0, compiled: the largest magnitude by integer comparison, which also finds NaN and infinity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q8_0 as DTYPE
from ..reference.checks import refuse_non_finite, refuse_scale
from ..reference.q8_0 import FP32_MIN
from ..scheme import Packed, Rows
from .half import HALF_LIMIT, INFINITY, MAGNITUDE, narrow_half, widen_half
from .jit import jit
from .tile import ONE, SOUND, VALUE_REFUSED, ZERO, Bits, Floats

__all__ = ["DTYPE", "decode", "encode"]

LEVELS, MIDDLE = np.float32(127), np.float32(0.5)

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 34] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    answer = _encode(blocks, blocks.view(np.uint32), packed.reshape(-1, DTYPE.nbytes))
    if answer == VALUE_REFUSED:
        refuse_non_finite(rows)
    elif answer != SOUND:
        refuse_scale(answer, columns, DTYPE.block)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 34] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    overflowed = SOUND
    for n in range(blocks.shape[0]):
        largest = np.uint32(0)
        for i in range(blocks.shape[1]):
            largest = max(largest, np.uint32(bits[n, i] & MAGNITUDE))
        if largest >= INFINITY:
            return VALUE_REFUSED
        d = np.uint32(largest).view(np.float32) / LEVELS
        if d >= HALF_LIMIT and overflowed == SOUND:
            overflowed = n
        inverse = ONE / d if d >= FP32_MIN else ZERO
        half = narrow_half(d)
        packed[n, 0], packed[n, 1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        for i in range(blocks.shape[1]):
            scaled = blocks[n, i] * inverse
            magnitude = abs(scaled)
            whole = np.int32(magnitude)
            whole = np.int32(whole + np.int32(magnitude - np.float32(whole) >= MIDDLE))
            packed[n, 2 + i] = np.uint8(-whole if scaled < ZERO else whole)
    return overflowed


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, 0]) | np.uint32(packed[n, 1]) << np.uint32(8))
        for i in range(blocks.shape[1]):
            blocks[n, i] = d * np.float32(np.int8(packed[n, 2 + i]))
