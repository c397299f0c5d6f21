"""Q5_1: 32 weights share an fp16 scale and an fp16 low end.

    block = | d: fp16 | m: fp16 | 20 bytes: codes (fifth_bits.py) |            24 bytes for 32 weights, 6.0 bits each
    weight[i] = d * codes[i] + m

How the two are chosen: affine_block.py. Source: ggml, block_q5_1.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q5_1 as DTYPE
from ..scheme import Packed, Rows
from . import fifth_bits
from .affine import Affine
from .affine_block import encode_blocks
from .search import bytes_half, half_bytes

__all__ = ["AFFINE", "DTYPE", "decode", "encode"]

# Measured on the weights named in q4_k.py: 4 % less plain and 4 % less weighted error than ggml's 37 candidates.
AFFINE = Affine(
    blocks=1,
    top=np.float32(31),
    scale_top=np.float32(0),  # this and what the super-blocks need beside it is unused here
    grid=np.array((29.0, 30.0, 31.0, 32.0), np.float32),
    edges=np.array((-0.3, 0.0, 0.3), np.float32),
    neighbours=np.empty(0, np.float32),
    again=np.empty(0, np.float32),
    even=np.float32(0),
    blend=np.float32(0.2),
    over=np.float32(0),
    highest=np.float32(np.inf),
)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 32 * 24] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    width = DTYPE.row_nbytes(rows.shape[1])
    d, m, codes = encode_blocks(AFFINE, rows, importance)
    q = codes.astype(np.uint8)
    return np.concatenate([half_bytes(d), half_bytes(m), fifth_bits.pack(q)], axis=1).reshape(len(rows), width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 24] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    d, m = bytes_half(blocks[:, :2])[:, None], bytes_half(blocks[:, 2:4])[:, None]
    q = fifth_bits.unpack(blocks[:, 4:])
    weights: Rows = d * q.astype(np.float32) + m
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
