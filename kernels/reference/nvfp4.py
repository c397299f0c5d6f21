"""NVFP4: 64 weights are 4 blocks of 16, each with an 8-bit float scale; each weight is a 4-bit float.

    super-block = | 4 x UE4M3 scales | 4 x 8 bytes: E2M1 codes |            36 bytes for 64 weights, 4.5 bits each
    UE4M3 = | 0 | exponent: 4, bias 7 | fraction: 3 |            unsigned; 0x7F (NaN) decodes as 0; 448 is the largest
    weight[j, i] = scale[j] / 2 * value[code[j, i]]              e2m1.py's values are doubled
    scale[j] = UE4M3 of max|x| / 6, halves upwards

There is no scale for the whole tensor, so the format's range is fixed: a block whose largest weight is below 6 / 1024
becomes zeros, one from 6 * 464 on is refused (ggml clips it). ggml never writes the scales 256 to 416 but 448 in their
place, and between 7.5 and 8 units of 2^-9 writes 7; so do we. Importance changes nothing.
Source: ggml, quantize_row_nvfp4_ref, ggml_fp32_to_ue4m3.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import NVFP4 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite, refuse_overflow
from .e2m1 import nearest, pack, unpack
from .search import Floats

__all__ = ["DTYPE", "LIMIT", "decode", "encode", "widen"]

BLOCK, BLOCKS = 16, 4
LIMIT = np.float32(2784)  # the least weight whose scale would round beyond 448
SIX = np.float32(6)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns / 64 * 36] uint8; NonFiniteError, ScaleOverflowError."""
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_non_finite(rows)
    refuse_overflow(rows, LIMIT)
    x = rows.reshape(-1, BLOCK)
    scales = _narrow(np.abs(x).max(axis=1) / SIX)
    codes = pack(nearest(x, widen(scales)))
    packed = np.concatenate([scales.reshape(-1, BLOCKS), codes.reshape(-1, BLOCKS * BLOCK // 2)], axis=1)
    return packed.reshape(n, width)


def _narrow(values: Floats) -> Packed:
    """float32 in [0, 464) -> UE4M3. What is below its least normal number, 2^-6, is a multiple of 2^-9."""
    bits = values.view(np.uint32)
    rounded = (bits >> np.uint32(19)) + np.uint32(1) >> np.uint32(1)
    normal = rounded.astype(np.int32) - ((127 - 7) << 3)
    normal = np.where(normal >= 0x78, 0x7E, normal)
    small = np.minimum((values * np.float32(512) + np.float32(0.5)).astype(np.int32), 7)
    return np.where(values < np.float32(2.0**-6), small, normal).astype(np.uint8)


def widen(scales: Packed) -> Floats:
    """UE4M3 -> half its value, float32; the highest bit counts for nothing."""
    exponent, fraction = scales >> np.uint8(3) & np.uint8(15), (scales & np.uint8(7)).astype(np.float32)
    normal = np.ldexp(np.float32(1) + fraction / np.float32(8), exponent.astype(np.int32) - 8)
    value = np.where(exponent == 0, fraction * np.float32(2.0**-10), normal)
    half: Floats = np.where(scales == 0x7F, np.float32(0), value)
    return half


def decode(packed: Packed) -> Rows:
    """[n, columns / 64 * 36] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    values = unpack(blocks[:, BLOCKS:].reshape(-1, BLOCK // 2))
    weights: Rows = widen(blocks[:, :BLOCKS].reshape(-1))[:, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
