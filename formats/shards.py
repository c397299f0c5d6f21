"""One list of tensors, several files of bounded size.

Tensors keep their order. A shard is closed when the next tensor would make it too large; a tensor that is larger than a
whole shard gets one of its own. This is huggingface_hub's rule, so the same model is cut at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import UsageError
from .checkpoint import TensorSpec


def split_by_size(specs: Sequence[TensorSpec], max_shard_nbytes: int) -> list[list[TensorSpec]]:
    """`specs` -> shards of at most `max_shard_nbytes` bytes of tensors, or of one tensor; at least one shard."""
    if max_shard_nbytes < 1:
        raise UsageError(f"a shard of {max_shard_nbytes} bytes holds nothing: give a size of at least one byte")
    shards: list[list[TensorSpec]] = []
    current: list[TensorSpec] = []
    room = max_shard_nbytes
    for spec in specs:
        if spec.nbytes > max_shard_nbytes:
            shards.append([spec])
            continue
        if spec.nbytes > room:
            shards.append(current)
            current, room = [], max_shard_nbytes
        current.append(spec)
        room -= spec.nbytes
    if current or not shards:
        shards.append(current)
    return shards
