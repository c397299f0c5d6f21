"""IQ1_S: 8 weights are one of 2048 points of -1, 0, 1; 32 share a 3-bit scale and a shift, 256 an fp16 number.

    super-block = | d: fp16 | 32 bytes: low 8 bits of the points | 8 x 16 bits |
                  50 bytes for 256 weights, 1.5625 bits each
    16 bits = | shift: 1 | scale: 3 | 4 x point's high bits: 3 |            the first point's lowest
    weight[i] = (d * (2 * scale + 1)) * (grid[point] + (1/8, or -1/8 where shift is set))

Layout: ggml, block_iq1_s.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import IQ1_S as DTYPE
from ..scheme import Packed, Rows
from .grids import grid
from .search import bytes_half

__all__ = ["DELTA", "DTYPE", "decode"]

DELTA = np.float32(0.125)


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
