"""NVFP4, compiled: integer rounding for the scales, a table of 256 floats to read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import NVFP4 as DTYPE
from ..reference.checks import refuse_values
from ..reference.nvfp4 import BLOCK, BLOCKS, LIMIT, SIX, widen
from ..scheme import Packed, Rows
from .e2m1 import decode_pairs, encode_pairs
from .half import MAGNITUDE
from .jit import jit
from .tile import SOUND, VALUE_REFUSED, Bits, Floats

__all__ = ["DTYPE", "decode", "encode"]

WIDE = widen(np.arange(256, dtype=np.uint8))
LIMIT_BITS = LIMIT.view(np.uint32)
LEAST_NORMAL, UNITS, HALF = np.float32(2.0**-6), np.float32(512), np.float32(0.5)
BITS19, ONE_BIT, REBIAS = np.uint32(19), np.uint32(1), np.int32((127 - 7) << 3)
GAP, TOP, SEVEN = np.int32(0x78), np.int32(0x7E), np.int32(7)

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 64 * 36] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    if _encode(blocks, blocks.view(np.uint32), packed.reshape(-1, DTYPE.nbytes)) == VALUE_REFUSED:
        refuse_values(rows, LIMIT)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 64 * 36] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _narrow(value: np.float32) -> np.int32:
    """float32 in [0, 464) -> UE4M3."""
    bits = np.float32(value).view(np.uint32)
    normal = np.int32(np.uint32(np.uint32(bits >> BITS19) + ONE_BIT) >> ONE_BIT) - REBIAS
    normal = TOP if normal >= GAP else np.int32(normal)
    scale: np.int32 = min(np.int32(value * UNITS + HALF), SEVEN) if value < LEAST_NORMAL else np.int32(normal)
    return scale


@jit
def _encode(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    for n in range(blocks.shape[0]):
        for j in range(BLOCKS):
            largest = np.uint32(0)
            for i in range(j * BLOCK, (j + 1) * BLOCK):
                largest = max(largest, np.uint32(bits[n, i] & MAGNITUDE))
            if largest >= LIMIT_BITS:
                return VALUE_REFUSED
            scale = _narrow(np.uint32(largest).view(np.float32) / SIX)
            packed[n, j] = np.uint8(scale)
            start = BLOCKS + j * BLOCK // 2
            encode_pairs(blocks[n, j * BLOCK : (j + 1) * BLOCK], WIDE[scale], packed[n, start : start + BLOCK // 2])
    return SOUND


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        for j in range(BLOCKS):
            start = BLOCKS + j * BLOCK // 2
            codes, x = packed[n, start : start + BLOCK // 2], blocks[n, j * BLOCK : (j + 1) * BLOCK]
            decode_pairs(codes, WIDE[packed[n, j]], x)
