"""Q4_0, compiled: the search that it shares (symmetric_block.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q4_0 as DTYPE
from ..reference.q4_0 import SYMMETRIC
from ..scheme import Packed, Rows
from . import symmetric_block
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 18] uint8."""
    return symmetric_block.encode(SYMMETRIC, DTYPE, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    half_block = packed.shape[1] - 2
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, 0]) | np.uint32(packed[n, 1]) << np.uint32(8))
        for i in range(half_block):
            pair = packed[n, 2 + i]
            blocks[n, i] = d * np.float32(np.int32(pair & 15) - 8)
            blocks[n, half_block + i] = d * np.float32(np.int32(pair >> 4) - 8)
