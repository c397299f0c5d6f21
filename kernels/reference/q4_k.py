"""Q4_K: 256 weights are 8 blocks of 32, each with a 6-bit scale and a 6-bit min under two fp16 numbers.

    super-block = | d: fp16 | dmin: fp16 | 12 bytes: scales and mins (scales6.py) | 128 bytes: codes |
                  144 bytes for 256 weights, 4.5 bits each
    codes: 4 runs of 32 bytes; byte i of run r holds block 2r's code i (low nibble) and block 2r + 1's (high nibble)
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

Layout: ggml, block_q4_K. The weights are those of ggml's quantize_q4_K; the search (affine.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q4_K as DTYPE
from ..scheme import Packed, Rows
from . import scales6
from .affine import NEIGHBOURS, Affine, search
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes

__all__ = ["AFFINE", "BLEND", "DTYPE", "EDGES", "GRID", "NEIGHBOURS", "decode", "encode", "pack"]

BLOCK, BLOCKS = 32, 8

# Measured on normal, Laplace, Student t, uniform, shifted and trained weights: these 6 x 3 candidates leave 3 to 4 % less
# error than ggml's 21 or 37, which all start at the block's minimum; 9 x 3 leave 0.3 % less than that.
GRID = tuple(np.float32(g) for g in (13.1, 13.7, 14.3, 14.9, 15.5, 16.1))
EDGES = tuple(np.float32(e) for e in (-0.3, 0.0, 0.3))
BLEND = np.float32(0.2)  # costs 0.5 % of the weighted error, saves 2.7 % of the plain one, which else may exceed ggml's
# Stretched by what 4 bits lose of the weights: 1.3 and 2 % less divergence (docs/quality.md).
AFFINE = Affine(
    blocks=BLOCKS,
    top=np.float32(15),
    scale_top=np.float32(63),
    grid=np.array(GRID),
    edges=np.array(EDGES),
    neighbours=np.array(NEIGHBOURS),
    again=np.array(NEIGHBOURS),
    even=np.float32(1),
    blend=BLEND,
    over=np.float32(128),
    highest=np.float32(0),
    stretch=np.float32(1.003),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 144] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(AFFINE, rows, importance)
    integers = (found.q.astype(np.uint8), found.scales.astype(np.uint8), found.mins.astype(np.uint8))
    return pack(found.d, found.dmin, *integers).reshape(len(rows), width)


def pack(d: Rows, dmin: Rows, q: Packed, scales: Packed, mins: Packed) -> Packed:
    """float32[n] twice, uint8[n, 8, 32], uint8[n, 8] twice -> uint8[n, 144]."""
    nibbles = (q[:, 0::2] | q[:, 1::2] << np.uint8(4)).reshape(-1, DTYPE.block // 2)
    return np.concatenate([half_bytes(d), half_bytes(dmin), scales6.pack(scales, mins), nibbles], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 144] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    scales, mins = scales6.unpack(blocks[:, 4:16])
    step = bytes_half(blocks[:, :2])[:, None] * scales.astype(np.float32)
    low = bytes_half(blocks[:, 2:4])[:, None] * mins.astype(np.float32)
    runs = blocks[:, 16:].reshape(-1, BLOCKS // 2, BLOCK)
    q = np.stack([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, BLOCKS, BLOCK).astype(np.float32)
    weights: Rows = step[..., None] * q - low[..., None]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
