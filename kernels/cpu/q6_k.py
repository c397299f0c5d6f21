"""Q6_K, compiled: the search that it shares (symmetric.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q6_K as DTYPE
from ..reference.q6_k import BLOCK, SYMMETRIC, pack
from ..scheme import Packed, Rows
from . import symmetric
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 210] uint8."""
    return symmetric.encode(SYMMETRIC, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 210] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[208]) | np.uint32(row[209]) << np.uint32(8))
        for h in range(2):
            for k in range(4):
                for s in range(2):
                    step = d * np.float32(np.int8(row[192 + 8 * h + 2 * k + s]))
                    for i in range(BLOCK):
                        low = row[64 * h + 32 * (k & 1) + 16 * s + i] >> (4 * (k >> 1)) & 15
                        high = row[128 + 32 * h + 16 * s + i] >> (2 * k) & 3
                        blocks[n, 128 * h + 32 * k + 16 * s + i] = step * np.float32(np.int32(low | high << 4) - 32)
