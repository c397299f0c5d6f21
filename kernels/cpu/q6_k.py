"""Q6_K, compiled: the search that it shares (symmetric.py), and its bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q6_K as DTYPE
from ..reference.q6_k import BLOCK, BLOCKS, SYMMETRIC
from ..scheme import Packed, Rows
from . import symmetric
from .half import narrow_half, widen_half
from .jit import jit
from .tile import Floats

__all__ = ["DTYPE", "decode", "encode"]

Bytes = NDArray[np.uint8]
DTYPE_BYTES = DTYPE.nbytes


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


@jit
def pack(d: Floats, q: Bytes, scales: NDArray[np.int8]) -> Bytes:
    """As the reference's."""
    packed = np.empty((q.shape[0], DTYPE_BYTES), np.uint8)
    codes = q.reshape((q.shape[0], 2, 4, 32))
    for n in range(q.shape[0]):
        row = packed[n]
        for h in range(2):
            for i in range(32):
                a, b, c, e = codes[n, h, 0, i], codes[n, h, 1, i], codes[n, h, 2, i], codes[n, h, 3, i]
                row[64 * h + i] = np.uint8((a & 15) | (c & 15) << 4)
                row[64 * h + 32 + i] = np.uint8((b & 15) | (e & 15) << 4)
                row[128 + 32 * h + i] = np.uint8(a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6)
        for j in range(BLOCKS):
            row[192 + j] = np.uint8(scales[n, j])
        half = narrow_half(d[n])
        row[208], row[209] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
    return packed
