"""Q4_0: 32 weights share one fp16 scale.

    block = | d: fp16 | 16 bytes |            18 bytes for 32 weights, 4.5 bits each
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * (codes[i] - 8)

The scale takes the sign that puts the weight of largest magnitude on code 0: d = extreme / -8, codes by the float32 d.
Source: ggml, quantize_row_q4_0_ref.

With importance the scale is searched under the weights that ggml's quantize_q4_0 uses, made a little more even:

    w = importance * sqrt(mean of x^2 over the row + x^2);  w += BLEND * sqrt(mean of x^2 over the row)
    1. for each grid point g: codes = round(x * g / extreme), fitted scale and gain (search.py); the largest gain wins;
       then the same with g a little less and a little more than the winner's
    2. d = fp16 of that scale; codes by the fp16 d; fit once more; of the two d's the one of less error is kept
"""

from __future__ import annotations

import numpy as np

from ...dtypes import Q4_0 as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_non_finite, refuse_overflow, refuse_scales, relative_importance
from .q8_0 import FP32_MIN
from .search import Floats, bytes_half, codes, half_bytes, half_scale, half_scale_or, reciprocal, signed_extreme, total

__all__ = ["BLEND", "DTYPE", "GRID", "decode", "encode"]

# Where the extreme weight lands: near code -8 with one sign of the scale, near +7 with the other.
# A wider or finer grid lowers the weighted error further and lets the plain error rise above ggml's.
GRID = tuple(np.float32(g / 100) for g in (*range(-890, -680, 25), *range(650, 820, 30)))
OFFSETS = tuple(np.float32(g) for g in (-0.12, 0.12))  # half the grid's pitch, around its best point
BLEND = np.float32(0.14)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 32 * 18] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_non_finite(rows)
    blocks = rows.reshape(-1, DTYPE.block)
    if importance is None:
        d, shifted = _largest(blocks, columns)
    else:
        refuse_overflow(rows, SEARCH_LIMIT)
        d, shifted = _searched(blocks, _weights(rows, relative_importance(importance, columns)), columns)
    nibbles = shifted.astype(np.uint8)
    packed = np.concatenate([half_bytes(d), nibbles[:, :16] | nibbles[:, 16:] << np.uint8(4)], axis=1)
    return packed.reshape(n, width)


def _largest(blocks: Floats, columns: int) -> tuple[Floats, Floats]:
    """d and codes + 8 by the weight of largest magnitude, the first of several; an all-zero block has d = -0."""
    index = np.abs(blocks).argmax(axis=1)
    extreme = blocks[np.arange(len(blocks)), index]
    extreme = np.where(extreme == 0, np.float32(0), extreme)
    d = extreme / np.float32(-8)
    refuse_scales(d, columns, DTYPE.block)
    usable = np.abs(d) >= FP32_MIN
    inverse = np.where(usable, np.float32(1) / np.where(usable, d, np.float32(1)), np.float32(0))
    shifted = np.minimum(np.trunc(blocks * inverse[:, None] + np.float32(8.5)), np.float32(15))
    return d, shifted


def _weights(rows: Rows, importance: Rows) -> Floats:
    """The search's weights, [blocks, 32]. The row's sum of squares is eight interleaved float64 sums, added in order."""
    n, columns = rows.shape
    squares = (rows * rows).reshape(n, columns // DTYPE.block, DTYPE.block)
    eighths = np.zeros((n, 8), np.float64)
    for start in range(0, columns, 8):
        eighths = eighths + (rows[:, start : start + 8] * rows[:, start : start + 8]).astype(np.float64)
    row_sum = np.zeros(n, np.float64)
    for eighth in eighths.T:
        row_sum = row_sum + eighth
    mean = (row_sum / max(columns, 1)).astype(np.float32)
    weights: Floats = importance.reshape(-1, DTYPE.block) * np.sqrt(mean[:, None, None] + squares)
    weights = weights + (BLEND * np.sqrt(mean))[:, None, None]
    return weights.reshape(-1, DTYPE.block)


def _searched(x: Floats, weights: Floats, columns: int) -> tuple[Floats, Floats]:
    """d (float32, on an fp16 number) and codes + 8 of least weighted error over the grid."""
    inverse = reciprocal(signed_extreme(x))
    best, scale, chosen = np.zeros_like(inverse), np.zeros_like(inverse), np.zeros_like(inverse)
    for g in GRID:
        fitted, gain = _fit(x, weights, codes(x * (g * inverse)[:, None], -8, 7))
        better = gain > best
        best, scale, chosen = np.where(better, gain, best), np.where(better, fitted, scale), np.where(better, g, chosen)
    for offset in OFFSETS:
        fitted, gain = _fit(x, weights, codes(x * ((chosen + offset) * inverse)[:, None], -8, 7))
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fitted, scale)
    refuse_scales(scale, columns, DTYPE.block)
    d = half_scale(scale)
    q, error = _exact(x, weights, d)
    again = half_scale_or(_fit(x, weights, q)[0], d)
    q_again, error_again = _exact(x, weights, again)
    better = error_again < error
    return np.where(better, again, d), np.where(better[:, None], q_again, q) + np.float32(8)


def _fit(x: Floats, weights: Floats, q: Floats) -> tuple[Floats, Floats]:
    """The scale that fits codes `q` best, and its gain."""
    wq = weights * q
    cross = total(wq * x)
    scale = cross * reciprocal(total(wq * q))
    return scale, cross * scale


def _exact(x: Floats, weights: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Nearest codes under `d`, and their weighted error."""
    q = codes(x * reciprocal(d)[:, None], -8, 7)
    off = d[:, None] * q - x
    return q, total(weights * off * off)


def decode(packed: Packed) -> Rows:
    """[n, columns / 32 * 18] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    nibbles = np.concatenate([blocks[:, 2:] & np.uint8(15), blocks[:, 2:] >> np.uint8(4)], axis=1)
    weights: Rows = bytes_half(blocks[:, :2])[:, None] * (nibbles.astype(np.float32) - np.float32(8))
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
