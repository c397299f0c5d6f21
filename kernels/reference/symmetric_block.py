"""What Q4_0 and Q5_0 share: 32 weights under one fp16 scale of either sign, codes low..high with high = -low - 1.

    weight[i] = d * code[i]

Without importance the scale takes the sign that puts the weight of largest magnitude on the lowest code: d = extreme / low,
codes by the float32 d. Source: ggml, quantize_row_q4_0_ref, quantize_row_q5_0_ref.

With importance the scale is searched under the weights of row_weights.py:

    1. for each grid point g: codes = round(x * g / extreme), fitted scale and gain (search.py); the largest gain wins;
       then the same with g a little less and a little more than the winner's
    2. d = fp16 of that scale; codes by the fp16 d
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..scheme import Rows
from .checks import SEARCH_LIMIT, refuse_non_finite, refuse_overflow, refuse_scales, relative_importance
from .q8_0 import FP32_MIN
from .row_weights import BLOCK, row_weights
from .search import Floats, codes, half_scale, reciprocal, signed_extreme, total

FAINT = np.float32(0.11)


class Symmetric(NamedTuple):
    """What a format allows, and its tuned constants; the compiled search takes the same value."""

    low: np.float32
    high: np.float32
    grid: Floats  # where the extreme weight lands: near `low` with one sign of the scale, near `high` with the other
    offsets: Floats  # tried around the best of the grid
    blend: np.float32


def encode_blocks(symmetric: Symmetric, rows: Rows, importance: Rows | None) -> tuple[Floats, Floats]:
    """[n, columns] -> d float32[blocks] and codes - low float32[blocks, 32]; NonFiniteError, ScaleOverflowError."""
    refuse_non_finite(rows)
    columns = rows.shape[1]
    blocks = rows.reshape(-1, BLOCK)
    if importance is None:
        return _largest(symmetric, blocks, columns)
    refuse_overflow(rows, SEARCH_LIMIT)
    weights = row_weights(rows, relative_importance(importance, columns), symmetric.blend, FAINT)
    return _searched(symmetric, blocks, weights, columns)


def _largest(symmetric: Symmetric, blocks: Floats, columns: int) -> tuple[Floats, Floats]:
    """By the weight of largest magnitude, the first of several; an all-zero block has d = -0."""
    index = np.abs(blocks).argmax(axis=1)
    extreme = blocks[np.arange(len(blocks)), index]
    extreme = np.where(extreme == 0, np.float32(0), extreme)
    d = extreme / symmetric.low
    refuse_scales(d, columns, BLOCK)
    usable = np.abs(d) >= FP32_MIN
    inverse = np.where(usable, np.float32(1) / np.where(usable, d, np.float32(1)), np.float32(0))
    middle = np.float32(0.5) - symmetric.low
    shifted = np.minimum(np.trunc(blocks * inverse[:, None] + middle), symmetric.high - symmetric.low)
    return d, shifted


def _searched(symmetric: Symmetric, x: Floats, weights: Floats, columns: int) -> tuple[Floats, Floats]:
    """d on an fp16 number, of least weighted error over the grid."""
    low, high = symmetric.low, symmetric.high
    inverse = reciprocal(signed_extreme(x))
    best, scale, chosen = np.zeros_like(inverse), np.zeros_like(inverse), np.zeros_like(inverse)
    for g in symmetric.grid:
        fitted, gain = _fit(x, weights, codes(x * (g * inverse)[:, None], low, high))
        better = gain > best
        best, scale, chosen = np.where(better, gain, best), np.where(better, fitted, scale), np.where(better, g, chosen)
    for offset in symmetric.offsets:
        fitted, gain = _fit(x, weights, codes(x * ((chosen + offset) * inverse)[:, None], low, high))
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fitted, scale)
    refuse_scales(scale, columns, BLOCK)
    d = half_scale(scale)
    return d, codes(x * reciprocal(d)[:, None], low, high) - low


def _fit(x: Floats, weights: Floats, q: Floats) -> tuple[Floats, Floats]:
    """The scale that fits codes `q` best, and its gain."""
    wq = weights * q
    cross = total(wq * x)
    scale = cross * reciprocal(total(wq * q))
    return scale, cross * scale
