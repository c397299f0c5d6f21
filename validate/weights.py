"""Every tensor of a candidate against the reference's, in slabs of rows: damage gets a name before anything is run.

    a reference, b candidate:   relative error |b - a| / |a|      SQNR = -20 log10(relative error) dB
                                cosine a.b / (|a| |b|)            largest single difference max |b - a|

Relative error is what is judged: a tensor of zeros has 1, one from another layer about 1.4, one scaled by two 1, and
cosine would miss the last. kernels/difference.py sums, and counts clipped weights and blocks of zeros; peak memory is a few
slabs for each thread, whatever the tensor's size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..convert.architecture import family_by
from ..convert.assemble import HEAD
from ..convert.model import Config, LazyTensor, Model
from ..convert.progress import Progress, silent
from ..dtypes import Q8_0
from ..errors import NonFiniteError
from ..kernels.difference import Difference, share
from .mistakes import explain

Rows = NDArray[np.float32]

SLAB = 1 << 19  # weights compared at once: 2 MiB of float32, so that the float64 copies stay in a core's cache
UNRELATED = 0.8  # relative error from which on it is worth asking what the tensor really is
LISTED = 8  # names in one line; the count says how many more


@dataclass(frozen=True)
class TensorDrift:
    """One tensor of a candidate against the reference's of the same name.

    The errors are None where the candidate holds NaN or infinity; `n_nonfinite` counts those.
    `relative_error` is infinite where the reference is all zeros and the candidate is not.
    `n_infinite` of those are infinite. `mistake` says what the tensor really is, where that can be told.
    Of types that share scales: `n_blocks` runs of weights have one each, `zero_blocks` of these hold zeros alone where the
    reference's do not, and `clipped` weights of the reference lie beyond what their block reaches (kernels/difference.py).
    """

    name: str
    dtype: str
    bits_per_weight: float
    same_dtype: bool
    n_nonfinite: int = 0
    relative_error: float | None = None
    cosine: float | None = None
    max_error: float | None = None
    mistake: str | None = None
    n_infinite: int = 0
    n_weights: int = 0
    nbytes: int = 0
    n_blocks: int = 0
    zero_blocks: int = 0
    clipped: int = 0

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise; None where the tensors are equal, or one of the two is not a signal."""
        if not self.relative_error or not math.isfinite(self.relative_error):
            return None
        return 20 * math.log10(1 / self.relative_error)

    @property
    def clipped_share(self) -> float:
        """Clipped weights, of all."""
        return self.clipped / self.n_weights if self.n_weights else 0.0

    @property
    def extra_bytes_at_8_bits(self) -> int:
        """What storing it as Q8_0 would add to the file; 0 where it has 8 bits a weight or more."""
        return 0 if self.bits_per_weight >= 8 else math.ceil(self.n_weights / Q8_0.block) * Q8_0.nbytes - self.nbytes

    @property
    def is_zero(self) -> bool:
        """True where the candidate is all zeros and the reference is not."""
        return self.cosine == 0.0 and self.relative_error == 1.0

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        names = ("sqnr_db", "clipped_share", "extra_bytes_at_8_bits")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


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


def is_stored_alike(tensor: LazyTensor, other: LazyTensor) -> bool:
    """True where the two have one dtype, and no third party's scheme stores one of them alone."""
    return tensor.dtype == other.dtype and tensor.packed == other.packed


def same_dtype(reference: Model, candidate: Model) -> bool:
    """True where every matrix of the candidate is stored as the reference's is: a conversion, not a quantization."""
    ours, theirs = with_head(candidate), with_head(reference)
    return all(
        name in theirs and is_stored_alike(tensor, theirs[name]) for name, tensor in ours.items() if is_matrix(tensor)
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
        WeightsDrift(_explained(drifts, own, theirs, reference.config), problems(theirs, own))
        for drifts, own in zip(found, ours, strict=True)
    ]


def problems(reference: Mapping[str, LazyTensor], candidate: Mapping[str, LazyTensor]) -> tuple[str, ...]:
    """What of a candidate cannot be compared with the reference, a line for each."""
    missing = [f"{name} is missing" for name in reference if name not in candidate]
    extra = [f"{name} is not in the reference" for name in candidate if name not in reference]
    shapes = [
        f"{name} has shape {list(candidate[name].shape)}, the reference's {list(tensor.shape)}"
        for name, tensor in reference.items()
        if name in candidate and candidate[name].shape != tensor.shape
    ]
    return (*missing, *extra, *shapes)


@dataclass
class _NonFinite:
    count: int = 0
    infinite: int = 0

    def add(self, rows: Rows) -> None:
        self.count += count_nonfinite(rows)
        self.infinite += int(np.count_nonzero(np.isinf(rows)))


def _compare(reference: LazyTensor, candidates: Sequence[LazyTensor | None]) -> list[TensorDrift | None]:
    fitting = [t if t is not None and t.shape == reference.shape else None for t in candidates]
    found = [Difference() for _ in candidates]
    bad = [_NonFinite() for _ in candidates]
    n_rows, columns = reference.matrix_shape
    step = max(1, SLAB // max(1, columns))
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        rows = _reference_rows(reference, start, stop)
        for index, tensor in enumerate(fitting):
            if tensor is not None:
                own = tensor.read_float32(start, stop)
                found[index].add(rows, own, tensor.dtype)
                if not found[index].is_finite:  # so are all that follow: only then is it worth counting
                    bad[index].add(own)
    return [
        None if tensor is None else _drift(tensor, reference, total, count)
        for tensor, total, count in zip(fitting, found, bad, strict=True)
    ]


def _reference_rows(tensor: LazyTensor, start: int, stop: int) -> Rows:
    rows = tensor.read_float32(start, stop)
    if count_nonfinite(rows):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
        raise NonFiniteError(
            f"{tensor.name}: the reference's weight at row {start + row}, column {column} is {rows[row, column]}, wanted a "
            "finite number: a damaged reference judges nothing; get it again",
            start + row,
            column,
        )
    return rows


def _drift(tensor: LazyTensor, reference: LazyTensor, total: Difference, bad: _NonFinite) -> TensorDrift:
    n_weights = prod(tensor.shape)
    run = share(tensor.dtype)
    bare = TensorDrift(
        reference.name,
        str(tensor.dtype) if tensor.packed is None else tensor.packed.scheme,
        tensor.bits_per_weight,
        is_stored_alike(tensor, reference),
        bad.count,
        n_infinite=bad.infinite,
        n_weights=n_weights,
        nbytes=tensor.stored_nbytes,
        n_blocks=n_weights // run if run else 0,
    )
    if bad.count:
        return bare
    return replace(
        bare,
        relative_error=total.relative_error,
        cosine=total.cosine,
        max_error=total.largest,
        zero_blocks=total.n_zero_blocks,
        clipped=total.n_clipped,
    )


def count_nonfinite(rows: Rows) -> int:
    """How many of them are NaN or infinite."""
    return int(rows.size - np.count_nonzero(np.isfinite(rows)))


def _explained(
    drifts: Sequence[TensorDrift],
    candidate: Mapping[str, LazyTensor],
    reference: Mapping[str, LazyTensor],
    config: Config,
) -> tuple[TensorDrift, ...]:
    """Ask of tensors that have nothing to do with their namesakes what they are."""
    lost = [d.name for d in drifts if d.relative_error is not None and d.relative_error >= UNRELATED and not d.is_zero]
    said = explain(lost, candidate, reference, config)
    return tuple(replace(drift, mistake=said.get(drift.name)) for drift in drifts)


def listed(names: Sequence[str]) -> str:
    """Names for one line: the first eight, and how many more."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
