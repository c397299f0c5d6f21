"""The model as every room sees it: canonical (Hugging Face) names and layouts, whatever the files are.

    LazyTensor  shards joined, rows permuted; still no data read
    Tokenizer   what the vocabulary means, and the files it came from, byte for byte
    Model       architecture + config + tokenizer + tensors
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import DType, Shape, matrix_shape
from ..formats.checkpoint import Bytes
from ..kernels.scheme import Rows, decode
from .tokenizer import Tokenizer

Config = dict[str, Any]


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not read yet. `read(start_row, stop_row)` -> uint8[rows, dtype.row_nbytes(columns)]."""

    name: str
    shape: Shape
    dtype: DType
    read: Callable[[int, int], Bytes]

    @property
    def nbytes(self) -> int:
        """Bytes at the stored dtype."""
        return self.dtype.tensor_nbytes(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns): what `read` counts in."""
        return matrix_shape(self.shape)

    def read_float32(self, start_row: int = 0, stop_row: int | None = None) -> Rows:
        """Rows [start_row, stop_row) decoded -> float32[rows, columns]; all rows by default."""
        rows, _ = self.matrix_shape
        return decode(self.dtype, self.read(start_row, rows if stop_row is None else stop_row))

    def load_float32(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The whole tensor decoded, in its own shape."""
        return self.read_float32().reshape(self.shape)


@dataclass(frozen=True)
class Model:
    """A model in canonical names and layouts.

    `config` speaks Hugging Face's config.json (portable spelling: `rope_theta`, `torch_dtype`).
    A tied head has no `lm_head.weight` and `config["tie_word_embeddings"]` is True.
    `source` is the format it came from: "meta", "safetensors" or "gguf"; `extras` is what only that format could hold.
    """

    architecture: str
    config: Config
    tokenizer: Tokenizer | None
    tensors: Mapping[str, LazyTensor]
    source: str
    files: tuple[Path, ...]
    extras: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
