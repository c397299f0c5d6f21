"""Q5_1, compiled: the search that it shares (affine_block.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q5_1 as DTYPE
from ..reference.q5_1 import AFFINE
from ..scheme import Packed, Rows
from . import affine_block
from .fifth_bits import read_codes
from .half import widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 32 * 24] uint8."""
    return affine_block.encode(AFFINE, DTYPE, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 24] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    q = np.empty(blocks.shape[1], np.uint8)
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, 0]) | np.uint32(packed[n, 1]) << np.uint32(8))
        m = widen_half(np.uint32(packed[n, 2]) | np.uint32(packed[n, 3]) << np.uint32(8))
        read_codes(packed[n], 4, q)
        for i in range(blocks.shape[1]):
            blocks[n, i] = d * np.float32(q[i]) + m
