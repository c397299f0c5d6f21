"""IQ1_M: 8 weights are one of 2048 points of -1, 0, 1 and a shift; 16 share a 3-bit scale, 256 an fp16 number.

    super-block = | 32 bytes: low 8 bits of the points | 16 bytes | 4 x 16 bits |
                  56 bytes for 256 weights, 1.75 bits each
    nibble i of the 16 bytes = | shift: 1 | point's high bits: 3 |            the low nibble first
    16 bits = | a quarter of d: 4 | 4 x scale: 3 |            d's lowest quarter in the first word, the first scale lowest
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))        IQ1_S's grid

Layout: ggml, block_iq1_m.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ1_M as DTYPE
from ..scheme import Packed, Rows
from .grids import grid
from .iq1_s import DELTA
from .search import bytes_half

__all__ = ["DTYPE", "decode"]


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
