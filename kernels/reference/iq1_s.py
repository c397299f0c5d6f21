"""IQ1_S: 8 weights are one of 2048 points of -1, 0, 1; 32 share a 3-bit scale and a shift, 256 an fp16 number.

    super-block = | d: fp16 | 32 bytes: low 8 bits of the points | 8 x 16 bits |
                  50 bytes for 256 weights, 1.5625 bits each
    16 bits = | shift: 1 | scale: 3 | 4 x point's high bits: 3 |            the first point's lowest
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))

The search: codebook.py; a block takes the shift of less error. ggml stores a d 1/8 above its own best fit.
Layout: ggml, block_iq1_s.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ1_S as DTYPE
from ..scheme import Packed, Rows
from .codebook import Codebook, Coded, search
from .grids import grid
from .search import ONE, bytes_half, half_bytes

__all__ = ["BOOK", "DELTA", "DTYPE", "SHIFTED", "TARGETS", "decode", "encode", "pack"]

DELTA = np.float32(0.125)
# Divergence (docs/quality.md) 0.98 of ggml's; 1.08 with three of them, 1.06 with two candidates for each instead of four.
TARGETS = tuple(np.float32(t) for t in (1, 1.4, 2, 3))  # steps in a block's largest weight
SHIFTED = np.uint16(2048)  # set in the index of a point that goes with the second shift
BOOK = Codebook(
    name="IQ1_S",
    block=32,
    unit=ONE,
    even=False,
    slope=ONE,
    offset=-ONE,
    targets=TARGETS,
    variance=np.float32(6),
    blend=np.float32(0.15),
    plain=np.float32(0.5),
    restored=np.float32(0.7),
    most=np.float32(0.15),
    nearest=4,
    scanned=4,
    top_scale=7,
    shifts=(DELTA, -DELTA),
    span=32,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 50] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)


def pack(coded: Coded) -> Packed:
    """Codes of super-blocks -> uint8[super-blocks, 50]."""
    points = coded.points.reshape(-1, 8, 4)
    words = coded.scales.astype(np.uint16) << np.uint16(12) | (points[:, :, 0] & SHIFTED) << np.uint16(4)
    for k in range(4):
        words |= (points[:, :, k] >> np.uint16(8) & np.uint16(7)) << np.uint16(3 * k)
    low = (coded.points & np.uint16(255)).astype(np.uint8)
    return np.concatenate([half_bytes(coded.d), low, words.astype("<u2").view(np.uint8)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 50] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    words = np.ascontiguousarray(blocks[:, 34:]).view("<u2")
    high = words[:, :, None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)
    point = blocks[:, 2:34].reshape(-1, 8, 4) | high << np.uint16(8)
    scale = (words >> np.uint16(12) & np.uint16(7)).astype(np.float32)
    step = bytes_half(blocks[:, :2])[:, None] * (np.float32(2) * scale + np.float32(1))
    shift = np.where(words & np.uint16(0x8000), -DELTA, DELTA)
    weights: Rows = step[:, :, None, None] * (grid("IQ1_S")[point] + shift[:, :, None, None])
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
