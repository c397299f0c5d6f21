"""IQ4_XS, compiled: the search that it shares (symmetric.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import IQ4_XS as DTYPE
from ..reference.iq4_nl import VALUES
from ..reference.iq4_xs import BLOCK, BLOCKS, SYMMETRIC, pack
from ..scheme import Packed, Rows
from . import symmetric
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 136] uint8."""
    return symmetric.encode(SYMMETRIC, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 136] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(VALUES, np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(values: Floats, packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[0]) | np.uint32(row[1]) << np.uint32(8))
        high = np.int32(row[2]) | np.int32(row[3]) << 8
        for j in range(BLOCKS):
            low = row[4 + (j >> 1)] >> (4 * (j & 1)) & 15
            step = d * np.float32((np.int32(low) | (high >> (2 * j) & 3) << 4) - 32)
            for i in range(16):
                pair = row[8 + 16 * j + i]
                blocks[n, BLOCK * j + i] = step * values[pair & 15]
                blocks[n, BLOCK * j + 16 + i] = step * values[pair >> 4]
