"""IQ3_XXS: 4 weights are one of 256 points and signs; 32 share a 4-bit scale, 256 an fp16 number.

    super-block = | d: fp16 | 64 bytes: points | 8 x 32 bits |            98 bytes for 256 weights, 3.0625 bits each
    32 bits = | scale: 4 | 4 x signs: 7 |            the signs of the first 8 weights lowest
    weight[i] = (d * (scale + 1/2) / 2) * sign * grid[point]        signs are even in number among 8, so 7 bits hold them

The search: codebook.py. Layout: ggml, block_iq3_xxs.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ3_XXS as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search, targets
from .grids import even_signs, grid
from .search import bytes_half, half_bytes

__all__ = ["BOOK", "DTYPE", "decode", "encode", "pack"]

BOOK = Codebook(
    name="IQ3_XXS",
    block=32,
    unit=np.float32(0.25),
    even=True,
    slope=np.float32(0.125),
    offset=np.float32(0.5),
    targets=targets("IQ3_XXS", 0.75, 1.15, 6),
    variance=np.float32(2),
    blend=np.float32(0.3),
    plain=np.float32(0.3),
    restored=np.float32(0.9),
    most=np.float32(0.02),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 98] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 98]."""
    words = coded.scales.astype(np.uint32) << np.uint32(28)
    for k in range(4):
        words |= (coded.signs.reshape(-1, 8, 4)[:, :, k] & np.uint8(127)).astype(np.uint32) << np.uint32(7 * k)
    points = coded.points.astype(np.uint8)
    return np.concatenate([half_bytes(coded.d), points, words.astype("<u4").view(np.uint8)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 98] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    words = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
    signs = words[:, :, None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(127)
    scale = (words >> np.uint32(28)).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (scale + np.float32(0.5)) * np.float32(0.5)
    values = grid("IQ3_XXS")[blocks[:, 2:66]].reshape(-1, 8, 4, 8) * even_signs()[signs]
    weights: Rows = step[:, :, None, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
