"""The same weights? Tensor by tensor, bit by bit, across formats, shard counts and layouts.

Both models are read in canonical names and layouts, by slabs. Two tensors are equal when every decoded value has the same
float32 bits (so F16 and F32 that hold the same numbers are equal, 0.0 and -0.0 are not); stored bytes of the same dtype are
compared first, which settles most tensors without decoding. Under a tolerance, for a pair of which one is lossy, two tensors
are equal up to a relative error |b - a| / |a| (Euclidean norms, float64); NaN and infinity must be where they were.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .architecture import family_by
from .assemble import HEAD
from .model import LazyTensor, Model

SLAB = 1 << 20  # elements compared at once


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same. `values` differ, by at most `largest`; `reason` says it in words.

    `relative` is the relative error where a tolerance asks for it; infinite where there is none.
    """

    name: str
    reason: str
    values: int = 0
    largest: float = 0.0
    relative: float = math.inf


@dataclass(frozen=True)
class DiffResult:
    """`tensors` were compared; `different` lists those that are not equal."""

    tensors: int
    different: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        """True where every tensor has the same values."""
        return not self.different

    def document(self) -> dict[str, Any]:
        """The JSON of `smelt diff`."""
        rows = [
            {
                "name": d.name,
                "reason": d.reason,
                "values": d.values,
                "largest": d.largest if np.isfinite(d.largest) else None,
                "relative": d.relative if np.isfinite(d.relative) else None,
            }
            for d in self.different
        ]
        return {"equal": self.equal, "tensors": self.tensors, "different": rows}


def diff(first: Model, second: Model, tolerance: float = 0.0) -> DiffResult:
    """Compare every tensor of two models. A tied head equals a stored one that repeats the embedding.

    tolerance  the relative error up to which tensors count as equal; 0: every bit of every value
    """
    a, b = dict(first.tensors), dict(second.tensors)
    embedding = family_by("name", first.architecture, str(first.files[0])).embedding
    for mine, other in ((a, b), (b, a)):
        if HEAD not in mine and HEAD in other and embedding in mine:
            mine[HEAD] = mine[embedding]
    different = []
    names = [*a, *(name for name in b if name not in a)]
    for name in names:
        if name not in a or name not in b:
            where = first.files[0] if name not in a else second.files[0]
            different.append(Difference(name, f"missing in {where.name}"))
        elif (found := compare(name, a[name], b[name])) is not None:
            if tolerance > 0 and a[name].shape == b[name].shape:
                found = replace(found, relative=relative_error(a[name], b[name]))
            if not found.relative <= tolerance:
                different.append(found)
    return DiffResult(len(names), tuple(different))


def compare(name: str, first: LazyTensor, second: LazyTensor) -> Difference | None:
    """None where two tensors are equal, else what differs."""
    if first.shape != second.shape:
        return Difference(name, f"shape {list(first.shape)} and {list(second.shape)}")
    rows, columns = first.matrix_shape
    height = max(1, SLAB // max(1, columns))
    values, largest = 0, 0.0
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        raw_a, raw_b = first.read(start, stop), second.read(start, stop)
        if first.dtype == second.dtype and np.array_equal(raw_a, raw_b):
            continue
        a, b = first.read_float32(start, stop), second.read_float32(start, stop)
        unequal = a.view(np.uint32) != b.view(np.uint32)
        count = int(np.count_nonzero(unequal))
        if count:
            values += count
            with np.errstate(invalid="ignore"):
                largest = max(
                    largest, float(np.nanmax(np.abs(a[unequal].astype(np.float64) - b[unequal]), initial=0.0))
                )
    if not values:
        return None
    kinds = f"{first.dtype}" if first.dtype == second.dtype else f"{first.dtype} and {second.dtype}"
    return Difference(
        name, f"{values} of {rows * columns} values differ ({kinds}), by at most {largest:.6g}", values, largest
    )


def relative_error(first: LazyTensor, second: LazyTensor) -> float:
    """|b - a| / |a| of two tensors of one shape; infinite where a is all zeros, or where either is not finite."""
    rows, columns = first.matrix_shape
    height = max(1, SLAB // max(1, columns))
    size = apart = 0.0
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        a = first.read_float32(start, stop).astype(np.float64).ravel()
        b = second.read_float32(start, stop).astype(np.float64).ravel()
        with np.errstate(invalid="ignore", over="ignore"):
            b -= a
            size, apart = size + float(np.einsum("i,i", a, a)), apart + float(np.einsum("i,i", b, b))
    if not (math.isfinite(size) and math.isfinite(apart)) or size == 0:
        return math.inf
    return math.sqrt(apart / size)
