"""IQ3_S: 4 weights are one of 512 points and signs; 32 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 64 bytes: low 8 bits of points | 8 bytes: high bits | 32 bytes of signs | 4 bytes of scales |
                  110 bytes for 256 weights, 3.4375 bits each
    bit k of high byte j is the top of point 8 j + k; scale byte j holds scale[2 j] (low nibble) and scale[2 j + 1]
    weight[i] = (d * (2 * scale + 1)) * sign * grid[point]

The search: codebook.py. Layout: ggml, block_iq3_s.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ3_S as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search, targets
from .grids import byte_signs, grid
from .search import bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ3_S",
    block=32,
    unit=np.float32(1),
    even=False,
    slope=np.float32(0.5),
    offset=np.float32(0.5),
    targets=targets("IQ3_S", 0.82, 1.08, 3),
    variance=np.float32(2),
    blend=np.float32(0.25),
    plain=np.float32(0.2),
    restored=np.float32(1),
    most=np.float32(0.04),
    scanned=4,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 110] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 110]."""
    high = np.packbits((coded.points >> np.uint16(8)).astype(np.uint8), axis=1, bitorder="little")
    nibbles = coded.scales[:, 0::2] | coded.scales[:, 1::2] << np.uint8(4)
    low = (coded.points & np.uint16(255)).astype(np.uint8)
    return np.concatenate([half_bytes(coded.d), low, high, coded.signs, nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 110] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    high = blocks[:, 66:74, None] >> np.arange(8, dtype=np.uint8) & np.uint8(1)
    point = blocks[:, 2:66] | high.reshape(-1, 64).astype(np.uint16) << np.uint16(8)
    nibbles = blocks[:, 106:, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    scale = nibbles.reshape(-1, 8).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (np.float32(1) + np.float32(2) * scale)
    values = grid("IQ3_S")[point].reshape(-1, 8, 4, 8) * byte_signs()[blocks[:, 74:106]].reshape(-1, 8, 4, 8)
    weights: Rows = step[:, :, None, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
