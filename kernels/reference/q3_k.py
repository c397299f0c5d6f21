"""Q3_K: 256 weights are 16 blocks of 16, each with a signed 6-bit scale under one fp16 number.

    super-block = | 32 bytes: high bits | 64 bytes: low 2 bits | 12 bytes: scales | d: fp16 |
                  110 bytes for 256 weights, 3.4375 bits each
    high: bit k of byte l is the third bit of the code of weight 32 k + l
    low: 2 runs of 32 bytes; byte l of run r holds weights 128 r + l + 32 k in bits 2k and 2k + 1, k = 0..3
    scale[j] + 32 in 6 bits: bits 0-3 in byte j (low nibble) for j < 8, of byte j - 8 (high nibble) else; bits 4-5 in byte
                  8 + j % 4, from bit 2 (j / 4) on
    weight[j, i] = (d * scale[j]) * (code[j, i] - 4)

Layout: ggml, block_q3_K. The weights are those of ggml's quantize_q3_K; the search (symmetric.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q3_K as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes
from .symmetric import NEIGHBOURS, Symmetric, search

__all__ = ["DTYPE", "PLAIN", "WEIGHTED", "decode", "encode", "pack"]

BLOCK, BLOCKS = 16, 16
PAIRS, BITS = np.arange(0, 8, 2, dtype=np.uint8), np.arange(8, dtype=np.uint8)

# Measured on the weights named in q4_k.py. With importance ggml's search of a block is nearly the best there is, and only
# the choice of d among 17 brings both errors below its own: 1 % (mean), 0.03 % in the worst case; coarser grids come
# nearer in theirs or lie above. A wider grid lowers the weighted error further and lets the plain error rise above ggml's.
GRID = (-5.0, -4.75, -4.5, -4.25, -4.0, -3.75, -3.5, -3.25, -3.0, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75)
TOPS = (*(t / 2 for t in range(-64, -55)), *(t / 2 for t in range(62, 54, -1)))
WEIGHTED = Symmetric(
    blocks=BLOCKS,
    low=np.float32(-4),
    high=np.float32(3),
    nearest=np.empty(0, np.float32),
    scale_low=np.float32(-32),
    scale_high=np.float32(31),
    tops=np.array(TOPS, np.float32),
    grid=np.array(GRID, np.float32),
    neighbours=np.array(NEIGHBOURS),
    even=np.float32(1),
    blend=np.float32(0.14),
    faint=np.float32(1),
    rooted=True,
)
# Without importance ggml does not scan at all: these leave 14 % less weighted and 4 % less plain error; five points leave
# 0.3 % less than that.
PLAIN = WEIGHTED._replace(grid=np.array((-4.3, -3.6, 3.1), np.float32))


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 110] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(PLAIN if importance is None else WEIGHTED, rows, importance, DTYPE.block)
    q = (found.levels - WEIGHTED.low).astype(np.uint8)
    return pack(found.d, q, found.scales.astype(np.int8)).reshape(len(rows), width)


def pack(d: Rows, q: Packed, scales: NDArray[np.int8]) -> Packed:
    """float32[n], codes uint8[n, 16, 16], int8[n, 16] -> uint8[n, 110]."""
    eighths = q.reshape(-1, 8, 32)
    high, low = np.zeros((len(q), 32), np.uint8), np.zeros((len(q), 2, 32), np.uint8)
    for k in range(8):
        high |= eighths[:, k] >> np.uint8(2) << np.uint8(k)
        low[:, k // 4] |= (eighths[:, k] & np.uint8(3)) << np.uint8(2 * (k % 4))
    shifted = (scales + np.int8(32)).view(np.uint8)
    top = (shifted >> np.uint8(4)).reshape(-1, 4, 4)
    nibbles = shifted[:, :8] & np.uint8(15) | shifted[:, 8:] << np.uint8(4)
    pairs = top[:, 0] | top[:, 1] << np.uint8(2) | top[:, 2] << np.uint8(4) | top[:, 3] << np.uint8(6)
    return np.concatenate([high, low.reshape(-1, 64), nibbles, pairs, half_bytes(d)], axis=1)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 110] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    nibbles = np.concatenate([blocks[:, 96:104] & np.uint8(15), blocks[:, 96:104] >> np.uint8(4)], axis=1)
    top = (blocks[:, None, 104:108] >> PAIRS[:, None] & np.uint8(3)).reshape(-1, BLOCKS)
    scales = (nibbles | top << np.uint8(4)).astype(np.float32) - np.float32(32)
    low = (blocks[:, 32:96].reshape(-1, 2, 1, 32) >> PAIRS[:, None] & np.uint8(3)).reshape(-1, 8, 32)
    high = blocks[:, None, :32] >> BITS[:, None] & np.uint8(1)
    q = (low | high << np.uint8(2)).reshape(-1, BLOCKS, BLOCK).astype(np.float32) - np.float32(4)
    weights: Rows = (bytes_half(blocks[:, 108:])[:, None] * scales)[..., None] * q
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
