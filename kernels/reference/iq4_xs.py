"""IQ4_XS: 256 weights are 8 blocks of 32, each with a signed 6-bit scale under one fp16 number; the levels are IQ4_NL's.

    super-block = | d: fp16 | 2 bytes: high bits of the scales | 4 bytes: low nibbles | 128 bytes: codes |
                  136 bytes for 256 weights, 4.25 bits each
    scale[j] + 32 in 6 bits: bits 0-3 in nibble j of the 4 bytes, bits 4-5 from bit 2j on of the little-endian 2 bytes
    codes: 16 bytes a block; byte i holds code i (low nibble) and code i + 16 (high nibble)
    weight[j, i] = (d * scale[j]) * LEVELS[code[j, i]]

Layout: ggml, block_iq4_xs. The weights are those of ggml's quantize_iq4_xs; the search (symmetric.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import IQ4_XS as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_values
from .iq4_nl import GRID, LEVEL_CODES, LEVELS, VALUES
from .q3_k import TOPS
from .search import bytes_half, half_bytes
from .symmetric import NEIGHBOURS, Symmetric, nearest_table, search

__all__ = ["DTYPE", "SYMMETRIC", "decode", "encode", "pack"]

BLOCK, BLOCKS = 32, 8
SHIFTS = np.arange(0, 16, 2, dtype=np.uint16)

# Measured on the weights named in q4_k.py: 3 % less plain and 14 % less weighted error than ggml's without importance, 4 and
# 6 % less with it.
SYMMETRIC = Symmetric(
    blocks=BLOCKS,
    low=VALUES[0],
    high=VALUES[-1],
    nearest=nearest_table(LEVELS),
    scale_low=np.float32(-32),
    scale_high=np.float32(31),
    tops=np.array(TOPS, np.float32),
    grid=np.array(GRID, np.float32),
    neighbours=np.array(NEIGHBOURS),
    even=np.float32(1),
    blend=np.float32(0.25),  # 0.2 costs 0.3 % more plain error, which then may exceed ggml's, and saves 0.1 % weighted
    faint=np.float32(1),
    rooted=True,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 136] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(SYMMETRIC, rows, importance, DTYPE.block)
    q = (found.levels - SYMMETRIC.low).astype(np.uint8)
    return pack(found.d, q, found.scales.astype(np.int8)).reshape(len(rows), width)


def pack(d: Rows, q: Packed, scales: NDArray[np.int8]) -> Packed:
    """float32[n], levels - low uint8[n, 8, 32], int8[n, 8] -> uint8[n, 136]."""
    codes = LEVEL_CODES[q]
    nibbles = (codes[..., :16] | codes[..., 16:] << np.uint8(4)).reshape(-1, DTYPE.block // 2)
    shifted = (scales + np.int8(32)).view(np.uint8)
    high = np.bitwise_or.reduce((shifted >> np.uint8(4)).astype(np.uint16) << SHIFTS, axis=1).astype("<u2")
    low = shifted[:, 0::2] & np.uint8(15) | shifted[:, 1::2] << np.uint8(4)
    return np.concatenate([half_bytes(d), high.view(np.uint8).reshape(-1, 2), low, nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 136] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> SHIFTS & np.uint16(3)
    low = np.stack([blocks[:, 4:8] & np.uint8(15), blocks[:, 4:8] >> np.uint8(4)], axis=2).reshape(-1, BLOCKS)
    scales = (low | high << np.uint16(4)).astype(np.float32) - np.float32(32)
    runs = blocks[:, 8:].reshape(-1, BLOCKS, BLOCK // 2)
    codes = np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=2)
    weights: Rows = (bytes_half(blocks[:, :2])[:, None] * scales)[..., None] * VALUES[codes]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
