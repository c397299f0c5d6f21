"""reference/row_weights.py, compiled."""

from __future__ import annotations

import numpy as np

from ..reference.row_weights import BLOCK, FAR
from .jit import jit
from .tile import Floats, height


@jit
def row_means(blocks: Floats, per_row: int, means: Floats) -> None:
    """mean(x^2) of each row, in eight float64 sums as the reference's."""
    sums = np.empty(8, np.float64)
    for row in range(means.shape[0]):
        sums[:] = 0.0
        for block in range(row * per_row, (row + 1) * per_row):
            for i in range(0, BLOCK, sums.shape[0]):
                for k in range(sums.shape[0]):
                    sums[k] += np.float64(blocks[block, i + k] * blocks[block, i + k])
        row_sum = 0.0
        for k in range(sums.shape[0]):
            row_sum += sums[k]
        means[row] = row_sum / (per_row * BLOCK)


@jit
def row_weights(
    x: Floats, w: Floats, means: Floats, first: int, per_row: int, blend: np.float32, faint: np.float32
) -> None:
    """The reference's weights, in place of the importance in the tile `w`."""
    mean, even = np.empty(x.shape[1], np.float32), np.empty(x.shape[1], np.float32)
    for lane in range(x.shape[1]):
        mean[lane] = means[min((first + lane) // per_row, means.shape[0] - 1)]
        even[lane] = blend * np.sqrt(mean[lane])
    for i in range(height(x)):
        for lane in range(x.shape[1]):
            square = x[i, lane] * x[i, lane]
            least = even[lane] if square < FAR * mean[lane] else faint * even[lane]
            w[i, lane] = w[i, lane] * np.sqrt(mean[lane] + square) + least
