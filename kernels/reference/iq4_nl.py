"""IQ4_NL: 32 weights share one fp16 scale; a 4-bit code names one of 16 levels that lie closer together near 0.

    block = | d: fp16 | 16 bytes |            18 bytes for 32 weights, 4.5 bits each
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * LEVELS[codes[i]]

Levels and layout: ggml, kvalues_iq4nl, block_iq4_nl. The weights are those of ggml's quantize_iq4_nl; the search
(symmetric.py, a super-block of one block whose integer scale is 1) is smelt's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import IQ4_NL as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes
from .symmetric import Symmetric, nearest_table, search

__all__ = ["DTYPE", "GRID", "LEVELS", "LEVEL_CODES", "SYMMETRIC", "decode", "encode", "pack"]

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
VALUES = np.array(LEVELS, np.float32)
LEVEL_CODES = np.zeros(LEVELS[-1] - LEVELS[0] + 1, np.uint8)  # the code of a level, at level - LEVELS[0]
LEVEL_CODES[np.array(LEVELS) - LEVELS[0]] = np.arange(16)

# Measured on the weights named in q4_k.py: 3 % less plain and 9 % less weighted error than ggml's 15 candidates without
# importance, 3 and 4 % less with it. Without `faint` an outlier in a column of little importance is kept, at a weighted error
# 2 % above ggml's.
GRID = (-134.0, -128.0, -122.0, -116.0, -110.0, -104.0, 102.0, 109.0, 116.0)
ONE = np.float32(1)
SYMMETRIC = Symmetric(
    blocks=1,
    low=VALUES[0],
    high=VALUES[-1],
    nearest=nearest_table(LEVELS),
    scale_low=ONE,
    scale_high=ONE,
    tops=np.ones(1, np.float32),
    grid=np.array(GRID, np.float32),
    neighbours=np.zeros(1, np.float32),
    even=np.float32(1),
    blend=np.float32(0.2),
    faint=np.float32(0.017),
    rooted=True,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 32 * 18] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(SYMMETRIC, rows, importance, DTYPE.block)
    q = (found.levels - SYMMETRIC.low).astype(np.uint8)
    return pack(found.d, q, found.scales.astype(np.int8)).reshape(len(rows), width)


def pack(d: Rows, q: Packed, scales: NDArray[np.int8]) -> Packed:  # noqa: ARG001
    """float32[n], levels - low uint8[n, 1, 32], scales that are all 1 -> uint8[n, 18]."""
    codes = LEVEL_CODES[q[:, 0]]
    return np.concatenate([half_bytes(d), codes[:, :16] | codes[:, 16:] << np.uint8(4)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    codes = np.concatenate([blocks[:, 2:] & np.uint8(15), blocks[:, 2:] >> np.uint8(4)], axis=1)
    weights: Rows = bytes_half(blocks[:, :2])[:, None] * VALUES[codes]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
