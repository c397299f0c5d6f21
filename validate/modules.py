"""A model's tensors under the names of transformers' modules, where those are not the names of its files.

    files                                         modules, transformers 5
    block_sparse_moe.gate.weight [E, d]           mlp.gate.weight
    block_sparse_moe.experts.{e}.w1, .w3 [F, d]   mlp.experts.gate_up_proj [E, 2F, d]: of each expert w1, then w3
    block_sparse_moe.experts.{e}.w2 [d, F]        mlp.experts.down_proj [E, d, F]

Rows are joined while they are read, so nothing is copied. Source: transformers, conversion_mapping.py ("mixtral").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from ..convert.layouts import join_rows
from ..convert.model import LazyTensor
from ..dtypes import Shape

_FUSED = {".mlp.experts.gate_up_proj": ("w1", "w3"), ".mlp.experts.down_proj": ("w2",)}
_ROUTER = ".mlp.gate.weight"
_FILES = ".block_sparse_moe"


def as_modules(tensors: Mapping[str, LazyTensor], shapes: Mapping[str, Shape]) -> dict[str, LazyTensor]:
    """`tensors` with those that modules call otherwise under the modules' names; `shapes` are the modules' parameters.

    ModelError where the matrices of a layer's experts do not have one dtype.
    """
    found = dict(tensors)
    for name, shape in shapes.items():
        sources = [] if name in found else _sources(name, shape)
        if sources and all(source in found for source in sources):
            joined = join_rows(name, [found.pop(source) for source in sources])
            fits = prod(joined.shape) == prod(shape)
            found[name] = replace(joined, shape=shape) if fits else joined
    return found


def _sources(name: str, shape: Shape) -> list[str]:
    """The files' names of what a module holds as `name`; empty where they are the same."""
    if name.endswith(_ROUTER):
        return [f"{name.removesuffix(_ROUTER)}{_FILES}.gate.weight"]
    for suffix, parts in _FUSED.items():
        if name.endswith(suffix) and len(shape) == 3:
            start = f"{name.removesuffix(suffix)}{_FILES}.experts"
            return [f"{start}.{expert}.{part}.weight" for expert in range(shape[0]) for part in parts]
    return []
