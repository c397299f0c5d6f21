"""Q3_K, compiled: the search that it shares (symmetric.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q3_K as DTYPE
from ..reference.q3_k import BLOCK, BLOCKS, PLAIN, WEIGHTED
from ..scheme import Packed, Rows
from . import symmetric
from .half import narrow_half, widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]
DTYPE_BYTES = DTYPE.nbytes


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 110] uint8."""
    return symmetric.encode(PLAIN if importance is None else WEIGHTED, DTYPE, pack, rows, importance)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 110] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[108]) | np.uint32(row[109]) << np.uint32(8))
        for j in range(BLOCKS):
            scale = (row[96 + (j & 7)] >> (4 * (j >> 3)) & 15) | (row[104 + (j & 3)] >> (2 * (j >> 2)) & 3) << 4
            step = d * np.float32(np.int32(scale) - 32)
            start, low, shift, bit = BLOCK * (j & 1), 32 + 32 * (j >> 3), 2 * (j >> 1 & 3), j >> 1
            for i in range(BLOCK):
                q = np.int32((row[low + start + i] >> shift & 3) | (row[start + i] >> bit & 1) << 2)
                blocks[n, BLOCK * j + i] = step * np.float32(q - 4)


@jit
def pack(d: Floats, q: Bytes, scales: NDArray[np.int8]) -> Bytes:
    """As the reference's."""
    packed = np.zeros((q.shape[0], DTYPE_BYTES), np.uint8)
    codes = q.reshape((q.shape[0], 8, 32))
    for n in range(q.shape[0]):
        row = packed[n]
        for k in range(8):
            start, shift = 32 + 32 * (k >> 2), 2 * (k & 3)
            for i in range(32):
                value = codes[n, k, i]
                row[i] |= np.uint8((value >> 2) << k)
                row[start + i] |= np.uint8((value & 3) << shift)
        for j in range(BLOCKS):
            shifted = np.uint8(scales[n, j] + 32)
            row[96 + (j & 7)] |= np.uint8((shifted & 15) << (4 * (j >> 3)))
            row[104 + (j & 3)] |= np.uint8((shifted >> 4) << (2 * (j >> 2)))
        half = narrow_half(d[n])
        row[108], row[109] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
    return packed
