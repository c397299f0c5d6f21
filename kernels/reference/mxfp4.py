"""MXFP4: 32 weights share a power of two, each is a 4-bit float.

    block = | e: E8M0 | 16 bytes: E2M1 codes |            17 bytes for 32 weights, 4.25 bits each
    weight[i] = step * value[code[i]],  step = 2^(e - 128): half of E8M0's, since e2m1.py's values are doubled
    e = floor(log2(max|x|)) - 2 + 127, at least 0

The logarithm is ggml's, rounded to float32: a few numbers just below a power of two count as that power. For a block
whose largest weight lies below 2^-125, ggml's exponent wraps around to 255, which the format reserves for NaN; here it
stays at 0. Importance changes nothing. Source: ggml, quantize_row_mxfp4_ref; OCP microscaling formats 1.0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import MXFP4 as DTYPE
from ..scheme import Packed, Rows
from .checks import refuse_non_finite
from .e2m1 import nearest, pack, unpack
from .search import Floats

__all__ = ["DTYPE", "ROUNDS_UP", "decode", "encode", "power"]


def _rounds_up(power: int) -> int:
    """How many of the float32 just below 2^power have a logarithm that rounds to `power`.

    log2(2^power * (1 - j / 2^24)) is power - j / (2^24 ln 2), and rounds up below half the spacing of float32 there.
    """
    if power == 0:
        return 0
    exponent = abs(power).bit_length() - 1
    finer = power > 0 and power == 1 << exponent  # below a power of two float32 is twice as dense
    return int(2.0 ** (exponent - finer) * 0.6931471805599453)


ROUNDS_UP = np.array([_rounds_up(biased - 127 + 1) for biased in range(256)], np.uint32)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns / 32 * 17] uint8; NonFiniteError."""
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_non_finite(rows)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    e = power(np.abs(blocks).max(axis=1))
    packed = np.concatenate([e[:, None], pack(nearest(blocks, _step(e)))], axis=1)
    return packed.reshape(n, width)


def power(largest: Floats) -> Packed:
    """max|x| -> the E8M0 byte, float32[blocks] -> uint8[blocks]."""
    bits = largest.view(np.uint32)
    biased = (bits >> np.uint32(23)).astype(np.intp)
    short = np.uint32(1 << 23) - (bits & np.uint32((1 << 23) - 1))  # units in the last place to the next power of two
    e: NDArray[np.intp] = biased + (short <= ROUNDS_UP[biased]) - 2
    return np.maximum(e, 0).astype(np.uint8)


def _step(e: Packed) -> Floats:
    """2^(e - 128), by its bits: the two least are subnormal."""
    small = np.uint32(1 << 21) << np.minimum(e, 1).astype(np.uint32)
    bits = np.where(e < 2, small, (np.maximum(e, 1).astype(np.uint32) - np.uint32(1)) << np.uint32(23))
    step: Floats = bits.view(np.float32)
    return step


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 17] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    weights: Rows = _step(blocks[:, 0])[:, None] * unpack(blocks[:, 1:])
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
