"""The weights of the searches with importance in types without super-blocks: Q4_0, Q4_1, Q5_0, Q5_1.

    w = importance * sqrt(mean of x^2 over the row + x^2) + blend * sqrt(mean of x^2 over the row)

The first term is ggml's, the second makes it a little more even. An outlier, whose x^2 is FAR means or more, gets only `faint`
of the second: whole, it keeps outliers in columns of little importance, at a weighted error above ggml's.

The row's sum of squares is eight interleaved float64 sums, added in order.
"""

from __future__ import annotations

import numpy as np

from ..scheme import Rows
from .search import Floats

BLOCK = 32
FAR = np.float32(64)


def row_weights(rows: Rows, importance: Rows, blend: np.float32, faint: np.float32) -> Floats:
    """float32[n, columns], float32[columns] -> float32[n * columns / 32, 32]."""
    n, columns = rows.shape
    squares = (rows * rows).reshape(n, columns // BLOCK, BLOCK)
    eighths = np.zeros((n, 8), np.float64)
    for start in range(0, columns, 8):
        eighths = eighths + (rows[:, start : start + 8] * rows[:, start : start + 8]).astype(np.float64)
    row_sum = np.zeros(n, np.float64)
    for eighth in eighths.T:
        row_sum = row_sum + eighth
    mean = (row_sum / max(columns, 1)).astype(np.float32)
    mean = mean[:, None, None]
    even = blend * np.sqrt(mean)
    weights: Floats = importance.reshape(-1, BLOCK) * np.sqrt(mean + squares)
    weights = weights + np.where(squares < FAR * mean, even, faint * even)
    return weights.reshape(-1, BLOCK)
