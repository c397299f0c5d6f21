"""MXFP4, compiled: the largest magnitude by integer comparison, whose exponent is the scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import MXFP4 as DTYPE
from ..reference.checks import refuse_non_finite
from ..reference.mxfp4 import ROUNDS_UP
from ..scheme import Packed, Rows
from .e2m1 import decode_pairs, encode_pairs
from .half import INFINITY, MAGNITUDE
from .jit import jit
from .tile import SOUND, VALUE_REFUSED, Bits, Floats

__all__ = ["DTYPE", "decode", "encode"]

FRACTION, UNIT, BITS23 = np.uint32((1 << 23) - 1), np.uint32(1 << 23), np.uint32(23)
LEAST_STEP = np.uint32(1 << 21)  # 2^-128, subnormal

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 17] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    if _encode(blocks, blocks.view(np.uint32), packed.reshape(-1, DTYPE.nbytes)) == VALUE_REFUSED:
        refuse_non_finite(rows)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 17] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _step(e: np.uint32) -> np.float32:
    """2^(e - 128)."""
    bits = np.uint32(LEAST_STEP << e) if e < np.uint32(2) else np.uint32(np.uint32(e - np.uint32(1)) << BITS23)
    step: np.float32 = np.uint32(bits).view(np.float32)
    return step


@jit
def _encode(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    for n in range(blocks.shape[0]):
        largest = np.uint32(0)
        for i in range(blocks.shape[1]):
            largest = max(largest, np.uint32(bits[n, i] & MAGNITUDE))
        if largest >= INFINITY:
            return VALUE_REFUSED
        biased = np.int32(largest >> BITS23)
        short = np.uint32(UNIT - np.uint32(largest & FRACTION))
        e = np.uint32(max(biased + np.int32(short <= ROUNDS_UP[biased]) - np.int32(2), np.int32(0)))
        packed[n, 0] = np.uint8(e)
        encode_pairs(blocks[n], _step(e), packed[n, 1:])
    return SOUND


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        decode_pairs(packed[n, 1:], _step(np.uint32(packed[n, 0])), blocks[n])
