"""The digest of a tensor's canonical values, as 16 hex digits: `kernels/digest.py` over all rows, while they are written.

A stored tensor's rows may lie in another order than the canonical ones. Row numbers are therefore laid out as the rows
were, by the same layout: a column of whole numbers in place of the weights says of each stored row which one it is.
What no row numbers can follow (vectors, whose elements a layout moves, or to which it adds) is small, and is digested
from the source, as its scheme stores it, after the run.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DTYPES, DType
from ..formats.checkpoint import Bytes
from ..kernels.digest import add_digests, digest_finite_rows, digest_rows
from ..kernels.scheme import Scheme
from .model import LazyTensor

NUMBER = DTYPES["I64"]
SLAB = 1 << 20  # elements read at once


@dataclass(frozen=True)
class Origin:
    """Where a stored tensor comes from: the canonical tensor, and its row numbers laid out as its rows are.

    `numbers` is None where no numbers can follow the layout.
    """

    tensor: LazyTensor
    numbers: LazyTensor | None


def numbered(tensor: LazyTensor) -> LazyTensor:
    """A tensor of the same name and rows that holds nothing but their numbers; a vector stays what it is."""
    if len(tensor.shape) != 2:
        return tensor

    def read(start: int, stop: int) -> Bytes:
        return np.arange(start, stop, dtype="<i8").view(np.uint8).reshape(-1, NUMBER.nbytes)

    return LazyTensor(tensor.name, (tensor.shape[0], 1), NUMBER, read)


def tensor_digest(tensor: LazyTensor, scheme: Scheme | None = None) -> str:
    """Of a canonical tensor, read by slabs, as it is or as `scheme` would store it."""
    rows, columns = tensor.matrix_shape
    height = max(1, SLAB // max(1, columns))
    total = 0
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        dtype, stored = tensor.dtype, tensor.read(start, stop)
        if scheme is not None:
            dtype = scheme.stored(tensor.shape)[""][1]
            stored = scheme.encode(tensor.read_float32(start, stop), None)[""]
        total = add_digests(total, digest_rows(dtype, stored, np.arange(start, stop)))
    return f"{total:016x}"


@dataclass
class DigestSums:
    """What the rows written so far add up to, by canonical name; safe from several threads."""

    totals: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, origin: Origin, start: int, dtype: DType, stored: Bytes) -> bool:
        """Rows from `start` on, as they are stored; whether it was seen that all their values are finite."""
        if origin.numbers is None:
            return False
        stop = start + len(stored)
        numbers: NDArray[np.int64] = origin.numbers.read(start, stop).view("<i8")[:, 0].astype(np.int64)
        part, finite = digest_finite_rows(dtype, stored, numbers)
        name = origin.tensor.name
        with self.lock:
            self.totals[name] = add_digests(self.totals.get(name, 0), part)
        return finite

    def finished(self, others: Mapping[str, tuple[LazyTensor, Scheme]]) -> dict[str, str]:
        """Every tensor's digest; `others` are those that no row numbers follow."""
        found = {name: f"{total:016x}" for name, total in self.totals.items()}
        return found | {name: tensor_digest(*source) for name, source in others.items()}
