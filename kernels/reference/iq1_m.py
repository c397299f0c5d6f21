"""IQ1_M: 8 weights are one of 2048 points of -1, 0, 1 and a shift; 16 share a 3-bit scale, 256 an fp16 number.

    super-block = | 32 bytes: low 8 bits of the points | 16 bytes | 4 x 16 bits |
                  56 bytes for 256 weights, 1.75 bits each
    nibble i of the 16 bytes = | shift: 1 | point's high bits: 3 |            the low nibble first
    16 bits = | a quarter of d: 4 | 4 x scale: 3 |            d's lowest quarter in the first word, the first scale lowest
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))        IQ1_S's grid

The search: codebook.py; each group takes the shift of less error. ggml stores a d 1/9 above its own best fit.
Layout: ggml, block_iq1_m.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ1_M as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search
from .grids import grid
from .iq1_s import DELTA
from .search import ONE, bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ1_S",
    block=16,
    unit=ONE,
    even=False,
    slope=ONE,
    offset=-ONE,
    targets=tuple(np.float32(t) for t in (1, 1.75, 3)),
    variance=np.float32(8),
    blend=np.float32(0.2),
    plain=np.float32(0.5),
    restored=np.float32(0.8),
    most=np.float32(0.14),
    nearest=4,
    wide=12,
    scanned=2,
    top_scale=7,
    shifts=(DELTA, -DELTA),
    span=8,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 56] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 56]."""
    nibbles = (coded.points >> np.uint16(8)).astype(np.uint8)  # the shift lies above the point's high bits
    half = half_bytes(coded.d).view("<u2")
    words = (half >> np.array([0, 4, 8, 12], np.uint16) & np.uint16(15)) << np.uint16(12)
    for k in range(4):
        words |= coded.scales.reshape(-1, 4, 4)[:, :, k].astype(np.uint16) << np.uint16(3 * k)
    low = (coded.points & np.uint16(255)).astype(np.uint8)
    high = nibbles[:, 0::2] | nibbles[:, 1::2] << np.uint8(4)
    return np.concatenate([low, high, words.astype("<u2").view(np.uint8)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 56] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    nibbles = (blocks[:, 32:48, None] >> np.array([0, 4], np.uint8) & np.uint8(15)).reshape(-1, 32)
    point = blocks[:, :32] | (nibbles & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    shift = np.where(nibbles & np.uint8(8), -DELTA, DELTA)
    words = np.ascontiguousarray(blocks[:, 48:]).view("<u2")
    scale = (words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).reshape(-1, 16).astype(np.float32)
    quarters = (words >> np.uint16(12)) << np.array([0, 4, 8, 12], np.uint16)
    half = np.bitwise_or.reduce(quarters, axis=1).astype("<u2")
    step = bytes_half(half.view(np.uint8).reshape(-1, 2))[:, None] * (np.float32(2) * scale + np.float32(1))
    weights: Rows = step[:, :, None, None] * (grid("IQ1_S")[point] + shift[:, :, None]).reshape(-1, 16, 2, 8)
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
