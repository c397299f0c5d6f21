"""What is in there: format, family, tensors, dtypes, sizes, tokenizer, problems. Opens headers only."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import InputError
from .model import Config, LazyTensor, Model
from .open import checkpoints, identify, open_model
from .options import OpenOptions
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Listed:
    """One tensor under the name it has in its file; Meta's shards are shown joined. `dtype` may be a plugin's scheme."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class Inspection:
    """What `smelt inspect` shows. `problems` is what keeps smelt from converting it; `notes` is what it assumes."""

    format: str
    architecture: str | None
    parameters: int
    nbytes: int
    files: tuple[Path, ...]
    tensors: tuple[Listed, ...]
    config: Config
    tokenizer: Tokenizer | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The JSON of `smelt inspect`."""
        dtypes: dict[str, int] = {}
        for tensor in self.tensors:
            dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + 1
        tokenizer = self.tokenizer and {"kind": self.tokenizer.kind, "pieces": len(self.tokenizer.pieces)}
        return {
            "format": self.format,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "files": [str(path) for path in self.files],
            "dtypes": dtypes,
            "config": self.config,
            "tokenizer": tokenizer,
            "problems": list(self.problems),
            "notes": list(self.notes),
            "tensors": [
                {"name": t.name, "shape": list(t.shape), "dtype": t.dtype, "nbytes": t.nbytes} for t in self.tensors
            ],
        }


def inspect(path: Path, options: OpenOptions | None = None) -> Inspection:
    """Look into `path`. A file that is sound but no model smelt can map is shown with its problems; a broken one raises."""
    kind, where = identify(path)
    try:
        model = open_model(path, options)
    except InputError as error:
        return _unmapped(kind, where, str(error))
    return _mapped(kind, model)


def _listed(name: str, tensor: LazyTensor) -> Listed:
    dtype = tensor.dtype.name if tensor.packed is None else tensor.packed.scheme
    return Listed(name, tensor.shape, dtype, tensor.stored_nbytes)


def _mapped(kind: str, model: Model) -> Inspection:
    listed = tuple(_listed(model.stored_names.get(name, name), tensor) for name, tensor in model.tensors.items())
    problems = []
    if "max_position_embeddings" not in model.config:
        problems.append("the context length is in none of its files: converting needs --context-length")
    if model.tokenizer is None:
        problems.append("no tokenizer was found: GGUF needs one (--tokenizer FILE, or --skip-tokenizer)")
    return Inspection(
        kind,
        model.architecture,
        model.parameters,
        sum(file.stat().st_size for file in model.files),
        model.files,
        listed,
        model.config,
        model.tokenizer,
        tuple(problems),
        model.notes,
    )


def _unmapped(kind: str, where: Path, problem: str) -> Inspection:
    """The bare tensors of sound files; raises what the format's own reader raises."""
    opened = checkpoints(kind, where)
    listed = tuple(
        Listed(tensor.name, tensor.shape, tensor.dtype.name, tensor.nbytes)
        for checkpoint in opened
        for tensor in checkpoint.tensors.values()
    )
    files = tuple(file for checkpoint in opened for file in checkpoint.files)
    return Inspection(
        kind,
        None,
        sum(prod(tensor.shape) for tensor in listed),
        sum(file.stat().st_size for file in files),
        files,
        listed,
        {},
        None,
        (problem,),
        (),
    )
