"""Q4_0: 32 weights share one fp16 scale.

    block = | d: fp16 | 16 bytes |            18 bytes for 32 weights, 4.5 bits each
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * (codes[i] - 8)

How the scale is chosen: symmetric_block.py. Source: ggml, block_q4_0.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q4_0 as DTYPE
from ..scheme import Packed, Rows
from .search import bytes_half, half_bytes
from .symmetric_block import Symmetric, encode_blocks

__all__ = ["BLEND", "DTYPE", "GRID", "OFFSETS", "SYMMETRIC", "decode", "encode"]

# Measured on the weights named in q4_k.py: 0.8 % less plain and 0.7 % less weighted error than ggml's. A coarser grid's worst
# case is above ggml's weighted error; a wider one's lies above its plain error.
GRID = tuple(np.float32(g / 100) for g in (*range(-890, -680, 30), *range(660, 801, 35)))
OFFSETS = tuple(np.float32(g) for g in (-0.15, 0.15))  # half the grid's pitch, around its best point
BLEND = np.float32(0.14)
SYMMETRIC = Symmetric(np.float32(-8), np.float32(7), np.array(GRID), np.array(OFFSETS), BLEND)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 32 * 18] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    d, shifted = encode_blocks(SYMMETRIC, rows, importance)
    nibbles = shifted.astype(np.uint8)
    packed = np.concatenate([half_bytes(d), nibbles[:, :16] | nibbles[:, 16:] << np.uint8(4)], axis=1)
    return packed.reshape(len(rows), width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    nibbles = np.concatenate([blocks[:, 2:] & np.uint8(15), blocks[:, 2:] >> np.uint8(4)], axis=1)
    weights: Rows = bytes_half(blocks[:, :2])[:, None] * (nibbles.astype(np.float32) - np.float32(8))
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
