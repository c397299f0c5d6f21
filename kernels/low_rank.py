"""A product of two thin matrices, row by row, in the order and rounding of a chain of fused multiply-adds.

    out[i, j] = fma(b[i, r-1], a[r-1, j], ... fma(b[i, 1], a[1, j], b[i, 0] * a[0, j]))          all float32

That is what the matrix libraries compute for an inner dimension as short as an adapter's rank, so merging gives their
numbers; and, unlike theirs, it is the same on any CPU. A fused step is taken in float64, where the product of two float32
is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cpu.jit import jit

Floats = NDArray[np.float32]


def low_rank_rows(b: Floats, a: Floats) -> Floats:
    """b float32[n, r], a float32[r, columns] -> b @ a, float32[n, columns]."""
    out = np.zeros((b.shape[0], a.shape[1]), np.float32)
    _product(np.ascontiguousarray(b), np.ascontiguousarray(a), out)
    return out


@jit
def _product(b: Floats, a: Floats, out: Floats) -> None:
    for i in range(b.shape[0]):
        for k in range(b.shape[1]):
            left = np.float64(b[i, k])
            for j in range(a.shape[1]):
                out[i, j] = np.float32(left * np.float64(a[k, j]) + np.float64(out[i, j]))
