"""The model as every room sees it: canonical (Hugging Face) names and layouts, whatever the files are.

LazyTensor  shards joined, rows permuted; still no data read
Tokenizer   what the vocabulary means, and the files it came from, byte for byte
Model       architecture + config + tokenizer + tensors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import F32, DType, Shape, matrix_shape
from ..errors import ModelError
from ..formats.checkpoint import Bytes
from ..kernels.scheme import Rows, can_decode, decode
from .tokenizer import Tokenizer

Config = dict[str, Any]


@dataclass(frozen=True)
class Packed:
    """A matrix that a third party's scheme stores, and is read decoded: the scheme, and the bytes in the files."""

    scheme: str
    nbytes: int


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet. `read(start_row, stop_row)` -> uint8[rows, dtype.row_nbytes(columns)].

    packed  how it is stored, where that is a third party's scheme: what is read is decoded
    """

    name: str
    shape: Shape
    dtype: DType
    read: Callable[[int, int], Bytes]
    packed: Packed | None = None

    @property
    def nbytes(self) -> int:
        """Bytes at the stored dtype."""
        return self.dtype.tensor_nbytes(self.shape)

    @property
    def stored_nbytes(self) -> int:
        """Bytes in the files."""
        return self.nbytes if self.packed is None else self.packed.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element, scales included."""
        return self.dtype.bits_per_weight if self.packed is None else self.packed.nbytes * 8 / prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns): what `read` counts in."""
        return matrix_shape(self.shape)

    def read_float32(self, start_row: int = 0, stop_row: int | None = None) -> Rows:
        """Rows [start_row, stop_row) decoded -> float32[rows, columns]; all rows by default."""
        rows, _ = self.matrix_shape
        if not can_decode(self.dtype):
            raise ModelError(
                f"{self.name}: is {self.dtype}, a type that smelt cannot decode: convert the original instead"
            )
        return decode(self.dtype, self.read(start_row, rows if stop_row is None else stop_row))

    def load_float32(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The whole tensor decoded, in its own shape."""
        return self.read_float32().reshape(self.shape)


@dataclass(frozen=True)
class Assumption:
    """Two tensors that the headers suggest are the same; a run reads both and stops where a byte differs."""

    first: LazyTensor
    second: LazyTensor
    says: str


@dataclass(frozen=True)
class ExpectedSum:
    """What all of a model's values add up to, and `beside` them what was counted along; a run stops where it is not so.

    Tensors are summed one by one, each rounded to float32, and added in float32 in the order of `order`: keys by which
    tensors and the sums of `beside` are sorted.
    """

    value: float
    tolerance: float
    says: str
    beside: Mapping[str, float] = field(default_factory=dict)
    order: Callable[[str], Any] = str


@dataclass(frozen=True)
class Model:
    """A model in canonical names and layouts.

    `config` speaks Hugging Face's config.json (portable spelling: `rope_theta`, `torch_dtype`).
    A tied head has no `lm_head.weight` and `config["tie_word_embeddings"]` is True.
    `source` is the format it came from: "meta", "metaseq", "safetensors", "bin", "gguf" or a plugin's; `stored_names` are its
    names there, by canonical name; `norm_dtype` is what norms and biases had before a format forced them to F32; `side_files`
    are the files beside the weights that a Hugging Face folder carries, byte for byte; `kept` is what only the format it came
    from has a place for, as text under `smelt.*` keys: every other format carries it for the way back; `expected_sum` is what a
    recipe says that the values add up to.
    """

    architecture: str
    config: Config
    tokenizer: Tokenizer | None
    tensors: Mapping[str, LazyTensor]
    source: str
    files: tuple[Path, ...]
    stored_names: Mapping[str, str] = field(default_factory=dict)
    norm_dtype: DType = F32
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = ()
    expected_sum: ExpectedSum | None = None

    @property
    def parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def matrix_dtype(self) -> DType:
        """The dtype that most of the matrices' weights have."""
        weights: dict[DType, int] = {}
        for tensor in self.tensors.values():
            if len(tensor.shape) > 1:
                weights[tensor.dtype] = weights.get(tensor.dtype, 0) + prod(tensor.shape)
        return max(weights, key=lambda dtype: (weights[dtype], dtype.name))

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight of the matrices (tensors of two or more dimensions)."""
        matrices = [tensor for tensor in self.tensors.values() if len(tensor.shape) > 1]
        return sum(t.stored_nbytes for t in matrices) * 8 / max(1, sum(prod(t.shape) for t in matrices))
