"""IQ2_XXS: 8 weights are one of 256 points and signs; 32 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 8 x 8 bytes |            66 bytes for 256 weights, 2.0625 bits each
    8 bytes = | 4 x point: 8 | 4 x signs: 7 | scale: 4 |            two little-endian words, the lowest field first
    weight[i] = (d * (scale + 1/2) / 4) * sign * grid[point]        signs are even in number, so 7 bits hold 8

The search: codebook.py. Layout: ggml, block_iq2_xxs.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ2_XXS as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search, targets
from .grids import even_signs, grid
from .search import bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ2_XXS",
    block=32,
    unit=np.float32(0.125),
    even=True,
    slope=np.float32(1 / 17.5),
    offset=np.float32(8 / 17.5),
    targets=targets("IQ2_XXS", 0.65, 1.25, 4),
    variance=np.float32(2.5),
    blend=np.float32(0.2),
    plain=np.float32(0.5),
    restored=np.float32(0.7),
    most=np.float32(0.055),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 66] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 66]."""
    points = coded.points.astype(np.uint8).reshape(-1, 8, 4)
    words = np.zeros((len(points), 8), np.uint32)
    for k in range(4):
        words |= (coded.signs.reshape(-1, 8, 4)[:, :, k] & np.uint8(127)).astype(np.uint32) << np.uint32(7 * k)
    words |= coded.scales.astype(np.uint32) << np.uint32(28)
    eights = np.concatenate([points, words.astype("<u4").view(np.uint8).reshape(-1, 8, 4)], axis=2)
    return np.concatenate([half_bytes(coded.d), eights.reshape(-1, 64)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 66] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    words = np.ascontiguousarray(blocks[:, 2:]).view("<u4").reshape(-1, 8, 2)
    point = blocks[:, 2:].reshape(-1, 8, 8)[:, :, :4]
    signs = words[:, :, 1:] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    scale = (words[:, :, 1] >> np.uint32(28)).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (scale + np.float32(0.5)) * np.float32(0.25)
    weights: Rows = step[:, :, None, None] * (grid("IQ2_XXS")[point] * even_signs()[signs])
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
