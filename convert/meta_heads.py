"""Key-value heads that shards repeat: with more shards than heads, neighbouring shards hold the same one.

    8 heads, 16 shards     shard  0  1  2  3  4 ..  15
                           head   0  0  1  1  2 ..   7        n_kv_heads in params.json: 16, one a shard

A model has the 8. That they are repeated is known from the published shape (Llama 3.1 405B, MP16), from what smelt wrote
beside params.json, or from the user; the run compares every repeat byte by byte before it publishes anything.
Source: the sizes of the published shards; meta-llama/llama-models, models/checkpoint.py (repeat, then chunk).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..formats.checkpoint import Bytes
from .architecture import Match, whole_number
from .model import Assumption, LazyTensor

# (dim, n_layers, n_heads, n_kv_heads in the file): heads of the model. Llama 3.1 405B as published for 16 shards.
PUBLISHED: dict[tuple[int | None, ...], int] = {(16384, 126, 128, 16): 8}


def kv_heads(params: Mapping[str, Any], said: object, where: str) -> tuple[int, int]:
    """-> (key-value heads that the files hold, those of the model). `said`: by the user, or by smelt beside params.json.

    ModelError where the files' are not the model's repeated.
    """
    shape = [params.get(key) for key in ("dim", "n_layers", "n_heads", "n_kv_heads")]
    stored = shape[3] or shape[2]
    if any(type(value) not in (int, type(None)) for value in shape) or stored is None or stored < 1:
        return 1, 1  # the family says what is wrong with it
    wanted = stored
    if said is not None:
        wanted = whole_number(said, f"{where}: the number of key-value heads")
    elif tuple(shape) in PUBLISHED:
        wanted = PUBLISHED[tuple(shape)]
    if wanted > stored or stored % wanted:
        raise ModelError(f"{where}: {stored} key-value heads in the files are not {wanted} heads repeated")
    return stored, wanted


def without_repeats(
    stored: Mapping[str, LazyTensor], matches: Mapping[str, Match], n_stored: int, n_kv_heads: int, where: str
) -> tuple[dict[str, LazyTensor], tuple[Assumption, ...]]:
    """The tensors with each key-value head once, and what has to hold for that."""
    repeats = n_stored // n_kv_heads
    tensors, assumptions = dict(stored), []
    if repeats == 1:
        return tensors, ()
    for name, tensor in stored.items():
        if matches[name].row.shape[0] != "kv_rows":
            continue
        first, *others = (_every(tensor, n_stored, repeats, number) for number in range(repeats))
        tensors[name] = first
        says = f"{where}: {name}: its {n_stored} key-value heads are not {n_kv_heads} heads repeated: say --kv-heads {n_stored}"
        assumptions += [Assumption(first, other, says) for other in others]
    return tensors, tuple(assumptions)


def _every(tensor: LazyTensor, n_stored: int, repeats: int, number: int) -> LazyTensor:
    """Of every `repeats` neighbouring heads the one at `number`."""
    if tensor.shape[0] % n_stored:
        raise ModelError(f"{tensor.name}: {tensor.shape[0]} rows are not {n_stored} heads")
    head_dim = tensor.shape[0] // n_stored

    def read(start_row: int, stop_row: int) -> Bytes:
        pieces = [tensor.read(0, 0)]
        for head in range(start_row // head_dim, -(-stop_row // head_dim)):
            low, high = max(start_row, head * head_dim), min(stop_row, (head + 1) * head_dim)
            shift = (head * repeats + number - head) * head_dim
            pieces.append(tensor.read(low + shift, high + shift))
        return np.concatenate(pieces)

    return replace(tensor, shape=(tensor.shape[0] // repeats, *tensor.shape[1:]), read=read)
