"""The weights of the searches with importance in types without super-blocks: Q4_0, Q4_1, Q5_0, Q5_1.

    w = importance * sqrt(mean of x^2 over the row + x^2) + blend * sqrt(mean of x^2 over the row)

The first term is ggml's, the second makes it a little more even. The row's sum of squares is eight interleaved float64
sums, added in order.
"""

from __future__ import annotations

import numpy as np

from ..scheme import Rows
from .search import Floats

BLOCK = 32


def row_weights(rows: Rows, importance: Rows, blend: np.float32) -> Floats:
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
    weights: Floats = importance.reshape(-1, BLOCK) * np.sqrt(mean[:, None, None] + squares)
    weights = weights + (blend * np.sqrt(mean))[:, None, None]
    return weights.reshape(-1, BLOCK)
