"""Q6_K: 256 weights are 16 blocks of 16, each with a signed 8-bit scale under one fp16 number.

    super-block = | 128 bytes: low 4 bits | 64 bytes: high 2 bits | 16 x int8 scales | d: fp16 |
                  210 bytes for 256 weights, 6.5625 bits each
    for each half h of 128 weights, l = 0..31, the codes c[k] = code[128 h + 32 k + l]:
      low  byte 64 h + l       = c[0] & 15 | (c[2] & 15) << 4        low byte 64 h + 32 + l = c[1] & 15 | (c[3] & 15) << 4
      high byte 32 h + l       = c[0] >> 4 | (c[1] >> 4) << 2 | (c[2] >> 4) << 4 | (c[3] >> 4) << 6
    weight[j, i] = (d * scale[j]) * (code[j, i] - 32)

Layout: ggml, block_q6_K. The weights are those of ggml's quantize_q6_K; the search (symmetric.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q6_K as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes
from .symmetric import NEIGHBOURS, Symmetric, search

__all__ = ["BLEND", "DTYPE", "GRID", "NEIGHBOURS", "SYMMETRIC", "TOPS", "decode", "encode", "pack"]

BLOCK, BLOCKS = 16, 16

# Where the extreme weight lands: near code -32 with one sign of the scale, near 31 with the other.
# Measured on the weights named in q4_k.py: 4 % less plain and 13 % less weighted error than ggml's 19 without importance, 9 and
# 5 % less with it; seven points leave 0.7 % less than that, the one top of -128 1 to 4 % more.
GRID = tuple(np.float32(g) for g in (-32.4, -31.7, -31.0, 30.3, 31.2))
TOPS = tuple(np.float32(t) for t in (-128, -127, -126, -125))
BLEND = np.float32(0.2)
SYMMETRIC = Symmetric(
    blocks=BLOCKS,
    low=np.float32(-32),
    high=np.float32(31),
    nearest=np.empty(0, np.float32),
    scale_low=np.float32(-128),
    scale_high=np.float32(127),
    tops=np.array(TOPS),
    grid=np.array(GRID),
    neighbours=np.array(NEIGHBOURS),
    even=BLEND,
    blend=BLEND,
    faint=np.float32(1),
    rooted=False,
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 210] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(SYMMETRIC, rows, importance, DTYPE.block)
    q = (found.levels - SYMMETRIC.low).astype(np.uint8)
    return pack(found.d, q, found.scales.astype(np.int8)).reshape(len(rows), width)


def pack(d: Rows, q: Packed, scales: NDArray[np.int8]) -> Packed:
    """float32[n], codes uint8[n, 16, 16], int8[n, 16] -> uint8[n, 210]."""
    low, high = _split(q)
    return np.concatenate([low, high, scales.view(np.uint8), half_bytes(d)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 210] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    q = (low.reshape(-1, 2, 4, 32) | high << np.uint8(4)).reshape(-1, BLOCKS, BLOCK).astype(np.float32) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    step = bytes_half(blocks[:, 208:])[:, None] * scales
    weights: Rows = step[..., None] * q
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)


def _split(q: Packed) -> tuple[Packed, Packed]:
    """Codes 0..63, [n, 16, 16] -> their low 4 bits [n, 128] and high 2 bits [n, 64]."""
    c = q.reshape(-1, 2, 4, 32)
    four, fifteen = np.uint8(4), np.uint8(15)
    low = np.stack([c[:, :, 0] & fifteen | c[:, :, 2] << four, c[:, :, 1] & fifteen | c[:, :, 3] << four], axis=2)
    top = c >> four
    high: Packed = top[:, :, 0] | top[:, :, 1] << np.uint8(2) | top[:, :, 2] << four | top[:, :, 3] << np.uint8(6)
    return low.reshape(-1, 128), high.reshape(-1, 64)
