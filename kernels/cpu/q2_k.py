"""Q2_K, compiled: the search that it shares (affine.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q2_K as DTYPE
from ..reference.q2_k import BLOCK, BLOCKS, PLAIN, WEIGHTED, pack
from ..scheme import Packed, Rows
from . import affine
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 84] uint8."""
    return affine.encode(PLAIN if importance is None else WEIGHTED, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 84] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[80]) | np.uint32(row[81]) << np.uint32(8))
        dmin = widen_half(np.uint32(row[82]) | np.uint32(row[83]) << np.uint32(8))
        for j in range(BLOCKS):
            step, under = d * np.float32(row[j] & 15), dmin * np.float32(row[j] >> 4)
            start, shift = 16 + 32 * (j >> 3) + BLOCK * (j & 1), 2 * (j >> 1 & 3)
            for i in range(BLOCK):
                q = np.int32(row[start + i] >> shift & 3)
                blocks[n, BLOCK * j + i] = step * np.float32(q) - under
