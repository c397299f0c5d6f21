"""Q2_K: 256 weights are 16 blocks of 16, each with a 4-bit scale and a 4-bit min under two fp16 numbers.

    super-block = | 16 bytes: scale (low nibble) and min (high nibble) | 64 bytes: codes | d: fp16 | dmin: fp16 |
                  84 bytes for 256 weights, 2.625 bits each
    codes: 2 runs of 32 bytes; byte l of run r holds the codes of weights 128 r + l + 32 k in bits 2k and 2k + 1, k = 0..3
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

Layout: ggml, block_q2_K. With importance the weights are those of ggml's quantize_q2_K, made a little more even. Without, it
minimises the absolute error under |x|; smelt the squared one. The search (affine.py) is smelt's own.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q2_K as DTYPE
from ..scheme import Packed, Rows
from .affine import NEIGHBOURS, Affine, search
from .checks import SEARCH_LIMIT, refuse_values
from .search import bytes_half, half_bytes

__all__ = ["DTYPE", "PLAIN", "WEIGHTED", "decode", "encode", "pack"]

BLOCK, BLOCKS = 16, 16
SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)

# Measured on the weights named in q4_k.py: 3 x 3 candidates leave 17 % less plain and 8 % less weighted error than ggml's
# 16 without importance (6 x 3: 2 and 1 % less than that); 6 x 3 leave 8 and 7 % less than its 37 with importance.
GRID_PLAIN = tuple(np.float32(g) for g in (1.8, 2.4, 3.0))
GRID = tuple(np.float32(g) for g in (1.9, 2.2, 2.5, 2.8, 3.1, 3.4))
EDGES = tuple(np.float32(e) for e in (-0.3, 0.0, 0.3))
EVEN = np.float32(0.5)  # 1 leaves 2 % less plain and 3 % more weighted error, 0.25 the reverse
BLEND = np.float32(0.2)  # costs 0.4 % of the weighted error, saves 4 % of the plain one, which else may exceed ggml's
# Stretched: without that the model of docs/quality.md diverges 12 % more than ggml's, with it as much. Beyond 1.016 (uniform
# weights, importance) and 1.020 (outliers, none) the error would exceed ggml's.
WEIGHTED = Affine(
    blocks=BLOCKS,
    top=np.float32(3),
    scale_top=np.float32(15),
    grid=np.array(GRID),
    edges=np.array(EDGES),
    neighbours=np.zeros(1, np.float32),  # three leave 0.1 to 0.4 % less
    again=np.array(NEIGHBOURS),
    even=EVEN,
    blend=BLEND,
    over=np.float32(256),
    highest=np.float32(0),
    stretch=np.float32(1.013),
)
PLAIN = WEIGHTED._replace(grid=np.array(GRID_PLAIN), stretch=np.float32(1.018))


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 84] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    refuse_values(rows, SEARCH_LIMIT)
    found = search(PLAIN if importance is None else WEIGHTED, rows, importance)
    integers = (found.q.astype(np.uint8), found.scales.astype(np.uint8), found.mins.astype(np.uint8))
    return pack(found.d, found.dmin, *integers).reshape(len(rows), width)


def pack(d: Rows, dmin: Rows, q: Packed, scales: Packed, mins: Packed) -> Packed:
    """float32[n] twice, uint8[n, 16, 16], uint8[n, 16] twice -> uint8[n, 84]."""
    quarters = q.reshape(-1, 2, 4, 32)
    codes = quarters[:, :, 0]
    for k in range(1, 4):
        codes = codes | quarters[:, :, k] << np.uint8(2 * k)
    return np.concatenate(
        [scales | mins << np.uint8(4), codes.reshape(-1, DTYPE.block // 4), half_bytes(d), half_bytes(dmin)], axis=1
    )


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 84] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    step = bytes_half(blocks[:, 80:82])[:, None] * (blocks[:, :16] & np.uint8(15)).astype(np.float32)
    low = bytes_half(blocks[:, 82:84])[:, None] * (blocks[:, :16] >> np.uint8(4)).astype(np.float32)
    runs = blocks[:, 16:80].reshape(-1, 2, 1, 32)
    q = (runs >> SHIFTS[:, None] & np.uint8(3)).reshape(-1, BLOCKS, BLOCK).astype(np.float32)
    weights: Rows = step[..., None] * q - low[..., None]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
