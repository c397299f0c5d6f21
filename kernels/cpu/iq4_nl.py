"""IQ4_NL, compiled: the search that it shares (symmetric.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import IQ4_NL as DTYPE
from ..reference.iq4_nl import SYMMETRIC, VALUES, pack
from ..scheme import Packed, Rows
from . import symmetric
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 18] uint8."""
    return symmetric.encode(SYMMETRIC, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(VALUES, np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(values: Floats, packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, 0]) | np.uint32(packed[n, 1]) << np.uint32(8))
        for i in range(16):
            pair = packed[n, 2 + i]
            blocks[n, i] = d * values[pair & 15]
            blocks[n, 16 + i] = d * values[pair >> 4]
