"""What a model's values add up to, for recipes that publish it: a sum for each tensor, then all of them in float32.

    sum of a tensor = its values added in float64, slab by slab, rounded to float32
    total           = those sums added one after another in float32, in the recipe's order of tensors

A recipe of that time adds float32 values on one machine or another, so its number holds to its tolerance and no further.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from ..errors import InputError
from ..kernels.scheme import Rows
from .model import ExpectedSum


class Sums:
    """Sums of ranges of rows, from any thread, in any order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, dict[int, float]] = {}

    def add(self, name: str, start_row: int, rows: Rows) -> None:
        """float32[n, columns] from `start_row` on of the tensor `name`."""
        part = float(rows.sum(dtype=np.float64))
        with self._lock:
            self._parts.setdefault(name, {})[start_row] = part

    def by_tensor(self) -> dict[str, float]:
        """{tensor: the sum of its values}."""
        return {name: math.fsum(parts.values()) for name, parts in self._parts.items()}


def total(expected: ExpectedSum, sums: Sums) -> float:
    """All tensors' sums and those of `expected.beside`, as the recipe adds them."""
    every = {**sums.by_tensor(), **expected.beside}
    added = np.float32(0)
    for name in sorted(every, key=expected.order):
        added = np.float32(added + np.float32(every[name]))
    return float(added)


def check_sum(expected: ExpectedSum, sums: Sums) -> None:
    """InputError, with both sums, where the values do not add up to what is expected."""
    found = total(expected, sums)
    if not abs(found - expected.value) <= expected.tolerance:
        raise InputError(
            f"{expected.says}: all values add up to {found:.4f}, wanted {expected.value:.4f} within {expected.tolerance:g}"
        )
