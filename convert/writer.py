"""A format that smelt writes, as a value: what it holds, what tensors are called in it, and where every byte goes.

    lay_out   Model                     -> every tensor that is stored, under its name and in its layout there
    place     those tensors, as stored  -> files with a slot for each tensor, and what they say of the model

meta, metaseq, safetensors and gguf are four such values (`writers.py`); a third party's container is one more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..dtypes import F16, F32, FLOATS, DType, matrix_shape
from ..formats.checkpoint import FileLayout, TensorSpec
from ..formats.pth_write import TorchFile
from ..kernels.scheme import Rows
from .architecture import Family
from .assemble import Laid
from .model import LazyTensor, Model
from .places import Place

Places = Mapping[str, tuple[Place, ...]]


@dataclass(frozen=True)
class Output:
    """What is asked of a target; a writer takes of it what it has a use for.

    file_type   GGUF's number for the mixture of types; None: by the most common
    max_shard_nbytes, n_shards, without_tokenizer, provenance   as in `make_plan`
    """

    target: Path
    file_type: int | None = None
    max_shard_nbytes: int | None = None
    n_shards: int | None = None
    without_tokenizer: bool = False
    provenance: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """Files, and where each stored tensor's rows go in them; `torch_files` are those whose checksums come last."""

    files: Mapping[str, FileLayout]
    places: Places
    torch_files: Mapping[str, TorchFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Writer:
    """One format: see the module's docstring.

    holds    whether it can hold a dtype; what else it cannot hold is found when it places
    vectors  the dtype that norms and biases have there, whatever they were; None: their own
    notes    what is worth a line about every file of a model
    """

    name: str
    holds: Callable[[DType], bool]
    lay_out: Callable[[Family, Model], list[Laid]]
    place: Callable[[Model, Family, Sequence[TensorSpec], Output], Placed]
    vectors: DType | None = None
    notes: Callable[[Family, Model], tuple[str, ...]] = lambda _family, _model: ()


def holds_torch(dtype: DType) -> bool:
    """The dtypes that a model's weights may have in torch: plain floats of 16 bits and more."""
    return dtype in FLOATS


def whole(specs: Sequence[TensorSpec], files: Mapping[str, FileLayout]) -> Places:
    """Each stored tensor whole in the file that has a slot for it."""
    where = {name: (file, slot) for file, layout in files.items() for name, slot in layout.slots.items()}
    places = {}
    for spec in specs:
        rows, columns = matrix_shape(spec.shape)
        places[spec.name] = (Place(*where[spec.name], spec.dtype.row_nbytes(columns), 0, rows),)
    return places


def common_dtype(specs: Sequence[TensorSpec]) -> DType:
    """The dtype of most bytes among matrices: what a config calls the model's dtype."""
    sizes: dict[DType, int] = {}
    for spec in specs:
        if len(spec.shape) > 1:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=lambda dtype: (sizes[dtype], dtype.name)) if sizes else F16


def held(name: str, values: Rows) -> Laid:
    """A float32 vector that is in memory, as a stored tensor."""
    raw = np.ascontiguousarray(values, "<f4").view(np.uint8)[None]
    return Laid(name, values.shape, (LazyTensor(name, values.shape, F32, lambda start, stop: raw[start:stop]),))
