"""Q5_0: 32 weights share one fp16 scale.

    block = | d: fp16 | 20 bytes: codes (fifth_bits.py) |            22 bytes for 32 weights, 5.5 bits each
    weight[i] = d * (codes[i] - 16)

How the scale is chosen: symmetric_block.py. Source: ggml, block_q5_0.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q5_0 as DTYPE
from ..scheme import Packed, Rows
from . import fifth_bits
from .search import bytes_half, half_bytes
from .symmetric_block import Symmetric, encode_blocks

__all__ = ["BLEND", "DTYPE", "GRID", "OFFSETS", "SYMMETRIC", "decode", "encode"]

# Measured on the weights named in q4_k.py: 1.6 % less plain and 0.9 % less weighted error than ggml's.
GRID = tuple(np.float32(g) for g in (-16.8, -16.2, -15.6, -15.0, 14.6, 15.3, 16.0))
OFFSETS = tuple(np.float32(g) for g in (-0.2, 0.2))
BLEND = np.float32(0.2)
SYMMETRIC = Symmetric(np.float32(-16), np.float32(15), np.array(GRID), np.array(OFFSETS), BLEND)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 32 * 22] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    d, shifted = encode_blocks(SYMMETRIC, rows, importance)
    return np.concatenate([half_bytes(d), fifth_bits.pack(shifted.astype(np.uint8))], axis=1).reshape(len(rows), width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 22] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    codes = fifth_bits.unpack(blocks[:, 2:]).astype(np.float32) - np.float32(16)
    weights: Rows = bytes_half(blocks[:, :2])[:, None] * codes
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
