"""Q5_K: 256 weights are 8 blocks of 32, each with a 6-bit scale and a 6-bit min under two fp16 numbers.

    super-block = | d: fp16 | dmin: fp16 | 12 bytes: scales and mins (scales6.py) | 32 bytes: high bits | 128 bytes: low |
                  176 bytes for 256 weights, 5.5 bits each
    low: 4 runs of 32 bytes; byte i of run r holds the low 4 bits of block 2r's code i (low nibble) and of block 2r + 1's
    high: bit j of byte i is the fifth bit of block j's code i
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

Layout: ggml, block_q5_K. The weights are those of ggml's quantize_q5_K; the search (affine.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q5_K as DTYPE
from ..scheme import Packed, Rows
from . import scales6
from .affine import NEIGHBOURS, Affine, search
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes

__all__ = ["AFFINE", "BLEND", "DTYPE", "EDGES", "GRID", "NEIGHBOURS", "decode", "encode", "pack"]

BLOCK, BLOCKS = 32, 8

# Measured on the weights named in q4_k.py: these 4 x 3 candidates leave 7 % less error than ggml's 16 without importance,
# 5 % (plain) and 8 % (weighted) less than its 37 with importance; 6 x 3 leave 0.4 % less than that.
GRID = tuple(np.float32(g) for g in (29.0, 30.0, 31.0, 32.0))
EDGES = tuple(np.float32(e) for e in (-0.3, 0.0, 0.3))
BLEND = np.float32(0.2)  # costs 0.7 % of the weighted error, saves 3 % of the plain one, which else may exceed ggml's
AFFINE = Affine(
    blocks=BLOCKS,
    top=np.float32(31),
    scale_top=np.float32(63),
    grid=np.array(GRID),
    edges=np.array(EDGES),
    neighbours=np.zeros(1, np.float32),  # three leave 0.1 to 0.4 % less
    again=np.array(NEIGHBOURS),
    even=np.float32(1),
    blend=BLEND,
    over=np.float32(128),
    highest=np.float32(0),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 176] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(AFFINE, rows, importance)
    integers = (found.q.astype(np.uint8), found.scales.astype(np.uint8), found.mins.astype(np.uint8))
    return pack(found.d, found.dmin, *integers).reshape(len(rows), width)


def pack(d: Rows, dmin: Rows, q: Packed, scales: Packed, mins: Packed) -> Packed:
    """float32[n] twice, uint8[n, 8, 32], uint8[n, 8] twice -> uint8[n, 176]."""
    high = q[:, 0] >> np.uint8(4)
    for j in range(1, BLOCKS):
        high = high | (q[:, j] >> np.uint8(4)) << np.uint8(j)
    nibbles = (q[:, 0::2] & np.uint8(15) | q[:, 1::2] << np.uint8(4)).reshape(-1, DTYPE.block // 2)
    return np.concatenate([half_bytes(d), half_bytes(dmin), scales6.pack(scales, mins), high, nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 176] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    scales, mins = scales6.unpack(blocks[:, 4:16])
    step = bytes_half(blocks[:, :2])[:, None] * scales.astype(np.float32)
    low = bytes_half(blocks[:, 2:4])[:, None] * mins.astype(np.float32)
    runs = blocks[:, 48:].reshape(-1, BLOCKS // 2, BLOCK)
    nibbles = np.stack([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, BLOCKS, BLOCK)
    high = blocks[:, None, 16:48] >> np.arange(BLOCKS, dtype=np.uint8)[:, None] & np.uint8(1)
    q = (nibbles | high << np.uint8(4)).astype(np.float32)
    weights: Rows = step[..., None] * q - low[..., None]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
