"""Every tensor of a candidate against the reference's, in slabs of rows: damage gets a name before anything is run.

    a reference, b candidate:   relative error |b - a| / |a|      SQNR = -20 log10(relative error) dB
                                cosine a.b / (|a| |b|)            largest single difference max |b - a|

Relative error is what is judged: a tensor of zeros has 1, one from another layer about 1.4, one scaled by two 1, and
cosine would miss the last. Sums are float64; peak memory is a few slabs for each thread, whatever the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..convert.architecture import family_by
from ..convert.assemble import HEAD
from ..convert.model import LazyTensor, Model
from ..convert.progress import Progress, silent
from ..errors import NonFiniteError

Rows = NDArray[np.float32]

SLAB = 1 << 19  # weights compared at once: 2 MiB of float32, so that the float64 copies stay in a core's cache
UNRELATED = 0.8  # relative error from which on it is worth asking whether the tensor is another one of the reference's
TWIN = 0.5  # relative error to another tensor of the reference below which the two are told to be the same
TWINS_SOUGHT = 16  # where more tensors are unrelated it is another model, and each search reads a slab per layer
LISTED = 8  # names in one line; the count says how many more


@dataclass(frozen=True)
class TensorDrift:
    """One tensor of a candidate against the reference's of the same name.

    The errors are None where the candidate holds NaN or infinity; `n_nonfinite` counts those.
    `relative_error` is infinite where the reference is all zeros and the candidate is not.
    `resembles` names another tensor of the reference which this one is closer to.
    """

    name: str
    dtype: str
    bits_per_weight: float
    same_dtype: bool
    n_nonfinite: int = 0
    relative_error: float | None = None
    cosine: float | None = None
    max_error: float | None = None
    resembles: str | None = None

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise; None where the tensors are equal, or one of the two is not a signal."""
        if not self.relative_error or not math.isfinite(self.relative_error):
            return None
        return 20 * math.log10(1 / self.relative_error)

    @property
    def is_zero(self) -> bool:
        """True where the candidate is all zeros and the reference is not."""
        return self.cosine == 0.0 and self.relative_error == 1.0


@dataclass(frozen=True)
class WeightsDrift:
    """A candidate's tensors in the reference's order, and what could not be compared, a line for each."""

    tensors: tuple[TensorDrift, ...]
    problems: tuple[str, ...]

    @property
    def nonfinite(self) -> tuple[TensorDrift, ...]:
        """The tensors that hold NaN or infinity."""
        return tuple(tensor for tensor in self.tensors if tensor.n_nonfinite)

    @property
    def is_runnable(self) -> bool:
        """True where every tensor is there, fits, and is finite."""
        return not self.problems and not self.nonfinite


def is_matrix(tensor: LazyTensor) -> bool:
    """True for what quantization is about: two dimensions or more."""
    return len(tensor.shape) >= 2


def same_dtype(reference: Model, candidate: Model) -> bool:
    """True where every matrix of the candidate is stored as the reference's is: a conversion, not a quantization."""
    ours, theirs = with_head(candidate), with_head(reference)
    return all(
        name in theirs and tensor.dtype == theirs[name].dtype for name, tensor in ours.items() if is_matrix(tensor)
    )


def with_head(model: Model) -> dict[str, LazyTensor]:
    """The model's tensors, a tied head spelled out, so that a tied model compares with one that is not."""
    tensors = dict(model.tensors)
    if model.config.get("tie_word_embeddings") and HEAD not in tensors:
        embedding = family_by("name", model.architecture, model.architecture).embedding
        if embedding in tensors:
            tensors[HEAD] = tensors[embedding]
    return tensors


def compare_weights(
    reference: Model, candidates: Sequence[Model], threads: int = 1, progress: Progress = silent
) -> list[WeightsDrift]:
    """Reads the reference once for all candidates. NonFiniteError names a tensor of the reference with NaN or infinity."""
    theirs = with_head(reference)
    ours = [with_head(candidate) for candidate in candidates]
    found: list[list[TensorDrift]] = [[] for _ in candidates]

    def compare(name: str) -> list[TensorDrift | None]:
        return _compare(theirs[name], [tensors.get(name) for tensors in ours])

    with ThreadPoolExecutor(threads) as pool:
        for done, (name, drifts) in enumerate(zip(theirs, pool.map(compare, theirs), strict=True)):
            for index, drift in enumerate(drifts):
                if drift is not None:
                    found[index].append(drift)
            progress(done + 1, len(theirs), name)
    return [
        WeightsDrift(_with_twins(drifts, own, theirs), _problems(theirs, own))
        for drifts, own in zip(found, ours, strict=True)
    ]


def _problems(reference: Mapping[str, LazyTensor], candidate: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    missing = [f"{name} is missing" for name in reference if name not in candidate]
    extra = [f"{name} is not in the reference" for name in candidate if name not in reference]
    shapes = [
        f"{name} has shape {list(candidate[name].shape)}, the reference's {list(tensor.shape)}"
        for name, tensor in reference.items()
        if name in candidate and candidate[name].shape != tensor.shape
    ]
    return (*missing, *extra, *shapes)


class _Sums:
    """What the rows seen so far add up to."""

    def __init__(self) -> None:
        self.reference = self.candidate = self.product = self.difference = self.largest = 0.0
        self.n_nonfinite = 0

    def add(self, reference: Rows, candidate: Rows) -> None:
        self.n_nonfinite += _count_nonfinite(candidate)
        if self.n_nonfinite:
            return
        a, b = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
        # einsum sums in one thread and one order: the same number whatever the machine's BLAS does.
        self.reference += float(np.einsum("i,i", a, a))
        self.candidate += float(np.einsum("i,i", b, b))
        self.product += float(np.einsum("i,i", a, b))
        b -= a
        self.difference += float(np.einsum("i,i", b, b))
        self.largest = max(self.largest, float(b.max(initial=0.0)), -float(b.min(initial=0.0)))

    @property
    def relative_error(self) -> float:
        if self.reference == 0:
            return 0.0 if self.difference == 0 else math.inf
        return math.sqrt(self.difference / self.reference)

    @property
    def cosine(self) -> float:
        if self.reference == 0 or self.candidate == 0:
            return 1.0 if self.reference == self.candidate else 0.0
        return min(1.0, self.product / math.sqrt(self.reference) / math.sqrt(self.candidate))


def _compare(reference: LazyTensor, candidates: Sequence[LazyTensor | None]) -> list[TensorDrift | None]:
    fitting = [t if t is not None and t.shape == reference.shape else None for t in candidates]
    sums = [_Sums() for _ in candidates]
    n_rows, columns = reference.matrix_shape
    step = max(1, SLAB // max(1, columns))
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        rows = _reference_rows(reference, start, stop)
        for tensor, total in zip(fitting, sums, strict=True):
            if tensor is not None:
                total.add(rows, tensor.read_float32(start, stop))
    return [
        None if tensor is None else _drift(tensor, reference, total)
        for tensor, total in zip(fitting, sums, strict=True)
    ]


def _reference_rows(tensor: LazyTensor, start: int, stop: int) -> Rows:
    rows = tensor.read_float32(start, stop)
    if _count_nonfinite(rows):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        raise NonFiniteError(
            f"{tensor.name}: the reference's weight at row {start + row}, column {column} is {rows[row, column]}, wanted a "
            "finite number: a damaged reference judges nothing; get it again",
            start + row,
            column,
        )
    return rows


def _drift(tensor: LazyTensor, reference: LazyTensor, total: _Sums) -> TensorDrift:
    same = tensor.dtype == reference.dtype
    bits = tensor.dtype.bits_per_weight
    if total.n_nonfinite:
        return TensorDrift(reference.name, str(tensor.dtype), bits, same, total.n_nonfinite)
    return TensorDrift(
        reference.name, str(tensor.dtype), bits, same, 0, total.relative_error, total.cosine, total.largest
    )


def _count_nonfinite(rows: Rows) -> int:
    return int(rows.size - np.count_nonzero(np.isfinite(rows)))


def _with_twins(
    drifts: Sequence[TensorDrift], candidate: Mapping[str, LazyTensor], reference: Mapping[str, LazyTensor]
) -> tuple[TensorDrift, ...]:
    """Ask of tensors that have nothing to do with their namesakes whose they are: swapped layers, for one."""
    lost = [d.name for d in drifts if d.relative_error is not None and d.relative_error >= UNRELATED and not d.is_zero]
    sought = lost if len(lost) <= TWINS_SOUGHT else ()
    return tuple(
        replace(drift, resembles=_twin(candidate[drift.name], reference)) if drift.name in sought else drift
        for drift in drifts
    )


def _twin(tensor: LazyTensor, reference: Mapping[str, LazyTensor]) -> str | None:
    """The reference's tensor that this one is by its first rows."""
    stop = min(tensor.matrix_shape[0], max(1, SLAB // max(1, tensor.matrix_shape[1])))
    rows = tensor.read_float32(0, stop)
    for name, other in reference.items():
        if name != tensor.name and other.shape == tensor.shape:
            total = _Sums()
            total.add(other.read_float32(0, stop), rows)
            if total.relative_error < TWIN:
                return name
    return None


def listed(names: Sequence[str]) -> str:
    """Names for one line: the first eight, and how many more."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
