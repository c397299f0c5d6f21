"""Q5_K, compiled: the search that it shares (affine.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q5_K as DTYPE
from ..reference.q5_k import AFFINE, BLOCK, BLOCKS, pack
from ..scheme import Packed, Rows
from . import affine
from .half import widen_half
from .jit import jit
from .scales6 import unpack
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 176] uint8."""
    return affine.encode(AFFINE, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 176] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[0]) | np.uint32(row[1]) << np.uint32(8))
        dmin = widen_half(np.uint32(row[2]) | np.uint32(row[3]) << np.uint32(8))
        for j in range(BLOCKS):
            scale, least = unpack(row, j)
            step, under = d * np.float32(scale), dmin * np.float32(least)
            shift, bit = 4 * (j & 1), np.uint8(j)
            for i in range(BLOCK):
                low = row[48 + BLOCK * (j >> 1) + i] >> shift & 15
                q = np.int32(low | (row[16 + i] >> bit & 1) << 4)
                blocks[n, BLOCK * j + i] = step * np.float32(q) - under
