"""IQ2_S: 8 weights are one of 1024 points and signs; 16 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 32 bytes: low 8 bits of points | 32 bytes of signs | 8 bytes: high 2 bits | 8 bytes of scales |
                  82 bytes for 256 weights, 2.5625 bits each
    high byte j holds the tops of points 4 j .. 4 j + 3, the first lowest;
    scale byte j holds scale[2 j] (low nibble) and scale[2 j + 1]
    weight[i] = (d * (scale + 1/2) / 4) * sign * grid[point]

The search: codebook.py. Layout: ggml, block_iq2_s.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ2_S as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search, targets
from .grids import byte_signs, grid
from .search import bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ2_S",
    block=16,
    unit=np.float32(0.125),
    even=False,
    slope=np.float32(1 / 17.5),
    offset=np.float32(8 / 17.5),
    targets=targets("IQ2_S", 0.65, 1.25, 6),
    variance=np.float32(4),
    blend=np.float32(0.4),
    plain=np.float32(0.5),
    restored=np.float32(0.8),
    most=np.float32(0.055),
    scanned=4,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 82] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 82]."""
    tops = (coded.points >> np.uint16(8)).astype(np.uint8).reshape(-1, 8, 4) << np.array([0, 2, 4, 6], np.uint8)
    high = np.bitwise_or.reduce(tops, axis=2)
    nibbles = coded.scales[:, 0::2] | coded.scales[:, 1::2] << np.uint8(4)
    low = (coded.points & np.uint16(255)).astype(np.uint8)
    return np.concatenate([half_bytes(coded.d), low, coded.signs, high, nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 82] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    high = blocks[:, 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    point = blocks[:, 2:34] | high.reshape(-1, 32).astype(np.uint16) << np.uint16(8)
    nibbles = blocks[:, 74:, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    scale = nibbles.reshape(-1, 16).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (scale + np.float32(0.5)) * np.float32(0.25)
    values = grid("IQ2_S")[point] * byte_signs()[blocks[:, 34:66]]
    weights: Rows = step[:, :, None, None] * values.reshape(-1, 16, 2, 8)
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
