"""TQ2_0: 256 ternary weights share one fp16 scale, each takes 2 bits.

    super-block = | 64 bytes | d: fp16 |            66 bytes for 256 weights, 2.0625 bits each
    for each half h of 128 weights, byte 32 h + l holds trit[128 h + 32 k + l] << 2 k for k = 0..3
    weight[i] = d * (trit[i] - 1)

The scale and the trits: ternary.py. Importance changes nothing. Source: ggml, quantize_row_tq2_0_ref.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import TQ2_0 as DTYPE
from ..scheme import Packed, Rows
from .search import bytes_half, half_bytes
from .ternary import trits

__all__ = ["DTYPE", "decode", "encode"]

SHIFTS = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns / 256 * 66] uint8; NonFiniteError, ScaleOverflowError."""
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    d, trit = trits(rows, DTYPE.block)
    four = trit.reshape(-1, 2, 4, 32) << SHIFTS
    pairs = four[:, :, 0] | four[:, :, 1] | four[:, :, 2] | four[:, :, 3]
    return np.concatenate([pairs.reshape(-1, 64), half_bytes(d)], axis=1).reshape(n, width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 66] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    trit = blocks[:, :64].reshape(-1, 2, 1, 32) >> SHIFTS & np.uint8(3)
    values = trit.reshape(-1, DTYPE.block).astype(np.float32) - np.float32(1)
    weights: Rows = bytes_half(blocks[:, 64:])[:, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
