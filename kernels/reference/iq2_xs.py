"""IQ2_XS: 8 weights are one of 512 points and signs; 16 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 32 x 16 bits | 8 bytes of scales |            74 bytes for 256 weights, 2.3125 bits each
    16 bits = | signs: 7 | point: 9 |            byte j of the scales holds scale[2 j] (low nibble) and scale[2 j + 1]
    weight[i] = (d * (scale + 1/2) / 4) * sign * grid[point]        signs are even in number, so 7 bits hold 8

The search: codebook.py. Layout: ggml, block_iq2_xs.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ2_XS as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search, targets
from .grids import even_signs, grid
from .search import bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ2_XS",
    block=16,
    unit=np.float32(0.125),
    even=True,
    slope=np.float32(1 / 17.5),
    offset=np.float32(8 / 17.5),
    targets=targets("IQ2_XS", 0.6, 1.3, 5),
    variance=np.float32(2.5),
    blend=np.float32(0.2),
    plain=np.float32(0.5),
    restored=np.float32(0.9),
    most=np.float32(0.06),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 74] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 74]."""
    words = coded.points | (coded.signs & np.uint8(127)).astype(np.uint16) << np.uint16(9)
    nibbles = coded.scales[:, 0::2] | coded.scales[:, 1::2] << np.uint8(4)
    return np.concatenate([half_bytes(coded.d), words.astype("<u2").view(np.uint8), nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 74] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2").reshape(-1, 16, 2)
    nibbles = blocks[:, 66:, None] >> np.array([0, 4], np.uint8) & np.uint8(15)
    scale = nibbles.reshape(-1, 16).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (scale + np.float32(0.5)) * np.float32(0.25)
    values = grid("IQ2_XS")[words & np.uint16(511)] * even_signs()[words >> np.uint16(9)]
    weights: Rows = step[:, :, None, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
