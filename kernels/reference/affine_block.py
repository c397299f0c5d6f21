"""What Q4_1 and Q5_1 share: 32 weights under an fp16 scale and an fp16 low end, codes 0..top.

    weight[i] = d * code[i] + m

Without importance the codes span the block: m = min, d = (max - min) / top, codes by the float32 d and m. Source: ggml,
quantize_row_q4_1_ref, quantize_row_q5_1_ref.

With importance both are searched under the weights of row_weights.py:

    1. GRID x EDGES ranges of codes -> the scale and low end that fit best in closed form (affine.py)
    2. d and m = fp16 of those, codes by them; fit once more; of the two solutions the one of less error is kept
"""

from __future__ import annotations

import numpy as np

from ..scheme import Rows
from .affine import Affine, Sums, block_sums, fit_blocks
from .checks import SEARCH_LIMIT, refuse_non_finite, refuse_overflow, refuse_scales, relative_importance
from .q8_0 import FP32_MIN
from .row_weights import BLOCK, row_weights
from .search import HALF_OVERFLOW, ONE, ZERO, Floats, codes, half_scale_or, reciprocal, total


def encode_blocks(affine: Affine, rows: Rows, importance: Rows | None) -> tuple[Floats, Floats, Floats]:
    """[n, columns] -> d, m float32[blocks] and codes float32[blocks, 32]; NonFiniteError, ScaleOverflowError."""
    refuse_non_finite(rows)
    columns = rows.shape[1]
    blocks = rows.reshape(-1, BLOCK)
    if importance is None:
        return _between(affine, blocks, columns)
    refuse_overflow(rows, SEARCH_LIMIT)
    weights = row_weights(rows, relative_importance(importance, columns), affine.blend, ONE)
    return _searched(affine, blocks, weights, columns)


def _between(affine: Affine, blocks: Floats, columns: int) -> tuple[Floats, Floats, Floats]:
    """m is the least weight, the first of several: a zero keeps its sign."""
    m = blocks[np.arange(len(blocks)), blocks.argmin(axis=1)]
    with np.errstate(over="ignore"):
        d = (blocks.max(axis=1) - m + ZERO) / affine.top
    refuse_scales(np.maximum(d, np.abs(m)), columns, BLOCK)
    usable = d >= FP32_MIN
    inverse = np.where(usable, ONE / np.where(usable, d, ONE), ZERO)
    q = np.minimum(np.trunc((blocks - m[:, None]) * inverse[:, None] + np.float32(0.5)), affine.top)
    return d, m, q


def _searched(affine: Affine, x: Floats, weights: Floats, columns: int) -> tuple[Floats, Floats, Floats]:
    """d and m on fp16 numbers, of least weighted error over the grid."""
    sums = block_sums(x, weights)
    scale, low = fit_blocks(affine, x, weights, sums)
    refuse_scales(np.maximum(scale, np.abs(low)), columns, BLOCK)
    d, m = half_scale_or(scale, ZERO), _half(low, ZERO)
    q, error = _exact(affine, x, weights, d, m)
    fitted, fitted_low = _fit(weights, sums, q)
    again, m_again = half_scale_or(np.where(fitted > ZERO, fitted, d), d), _half(fitted_low, m)
    q_again, error_again = _exact(affine, x, weights, again, m_again)
    better = error_again < error
    return np.where(better, again, d), np.where(better, m_again, m), np.where(better[:, None], q_again, q)


def _half(low: Floats, otherwise: Floats | np.float32) -> Floats:
    """The nearest fp16 number, 0 among them; `otherwise` where a value is too large for fp16."""
    fits = np.abs(low) < HALF_OVERFLOW
    rounded: Floats = np.where(fits, np.where(fits, low, ZERO).astype(np.float16).astype(np.float32), otherwise)
    return rounded


def _fit(weights: Floats, sums: Sums, q: Floats) -> tuple[Floats, Floats]:
    """The line that fits codes `q` best."""
    wq = weights * q
    sum_q, sum_qq, cross = total(wq), total(wq * q), total(sums.centred * q)
    mean_q = sum_q * sums.inverse
    scale = cross * reciprocal(sum_qq - sum_q * mean_q)
    return scale, sums.mean - scale * mean_q


def _exact(affine: Affine, x: Floats, weights: Floats, d: Floats, m: Floats) -> tuple[Floats, Floats]:
    """Nearest codes under `d` and `m`, and their weighted error."""
    q = codes((x - m[:, None]) * reciprocal(d)[:, None], 0, affine.top)
    off = (d[:, None] * q + m[:, None]) - x
    return q, total(weights * off * off)
