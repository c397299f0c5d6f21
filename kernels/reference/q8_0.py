"""Q8_0: 32 weights share one fp16 scale, each is a signed byte.

    block = | d: fp16 | 32 x int8 |            34 bytes for 32 weights, 8.5 bits each
    weight[i] = d * codes[i]
    d = max|x| / 127,  codes[i] = round(x[i] / d), halves away from zero, by the float32 d before it becomes fp16

Importance changes nothing. Source: ggml, quantize_row_q8_0_ref.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q8_0 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite, refuse_scales
from .search import bytes_half, half_bytes

__all__ = ["DTYPE", "decode", "encode"]

FP32_MIN = np.float32(2.0**-126)  # a d below it has no finite reciprocal to rely on, and is 0 in fp16


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns / 32 * 34] uint8; NonFiniteError, ScaleOverflowError."""
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_non_finite(rows)
    blocks = rows.reshape(-1, DTYPE.block)
    d = np.abs(blocks).max(axis=1) / np.float32(127)
    refuse_scales(d, columns, DTYPE.block)
    usable = d >= FP32_MIN
    inverse = np.where(usable, np.float32(1) / np.where(usable, d, np.float32(1)), np.float32(0))
    scaled = blocks * inverse[:, None]
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    rounded = np.copysign(whole + (magnitude - whole >= np.float32(0.5)), scaled)
    packed = np.concatenate([half_bytes(d), rounded.astype(np.int8).view(np.uint8)], axis=1)
    return packed.reshape(n, width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 34] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    weights: Rows = bytes_half(blocks[:, :2])[:, None] * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(
        np.float32
    )
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
