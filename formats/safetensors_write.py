"""Where every byte of a safetensors file goes, known before any tensor is read.

The tensors lie as the reference writer puts them: dtypes from wide to narrow (so each tensor begins aligned to its
elements), then by name. `__metadata__` comes first, its keys sorted; the same input is always the same bytes.
Shards and index: huggingface_hub, serialization/_base.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ModelError, quoted
from .checkpoint import FileLayout, TensorSpec
from .safetensors_read import FILE_ORDER, is_name
from .shards import split_by_size
from .sniff import SAFETENSORS_HEADER_CAP

INDEX_SUFFIX = ".safetensors.index.json"
ALIGNMENT = 8  # bytes, of the beginning of the data


def safetensors_layout(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> FileLayout:
    """Tensors and `__metadata__` (written only where it has keys) -> one file's layout, slots absolute.

    ModelError for what the format cannot hold: block dtypes, names twice, `__metadata__` as a name.
    """
    _check(specs)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    begins: dict[str, int] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (FILE_ORDER.index(spec.dtype.name), spec.name)):
        begins[spec.name], end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "data_offsets": [begins[spec.name], end],
        }
    text = _encode(header)
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > SAFETENSORS_HEADER_CAP:
        raise ModelError(f"a safetensors header of {len(text)} bytes, at most {SAFETENSORS_HEADER_CAP}: write shards")
    start = 8 + len(text)
    slots = {name: start + begin for name, begin in begins.items()}
    return FileLayout(start + end, ((0, len(text).to_bytes(8, "little") + text),), slots)


def shard_plan(specs: Sequence[TensorSpec], max_shard_nbytes: int) -> list[tuple[str, list[TensorSpec]]]:
    """Tensors in their order -> [(file name, its tensors)]: `model.safetensors`, or `model-00001-of-0000K.safetensors`.

    A shard holds at most `max_shard_nbytes` bytes of tensors, or one tensor that is larger.
    """
    shards = split_by_size(specs, max_shard_nbytes)
    if len(shards) == 1:
        return [("model.safetensors", shards[0])]
    return [(f"model-{i:05d}-of-{len(shards):05d}.safetensors", shard) for i, shard in enumerate(shards, 1)]


def index_json(shards: Sequence[tuple[str, Sequence[TensorSpec]]]) -> bytes:
    """The content of `model.safetensors.index.json` for the shards of `shard_plan`."""
    index = {
        "metadata": {"total_size": sum(spec.nbytes for _, specs in shards for spec in specs)},
        "weight_map": {spec.name: filename for filename, specs in shards for spec in specs},
    }
    return (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()


def _check(specs: Sequence[TensorSpec]) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.dtype.name not in FILE_ORDER:
            raise ModelError(f"{spec.name}: safetensors cannot hold {spec.dtype}, only {' '.join(FILE_ORDER)}")
        if not is_name(spec.name):
            raise ModelError(f"{quoted(spec.name)}: safetensors cannot hold a tensor of this name: rename it")
        if spec.name in seen:
            raise ModelError(f"{spec.name}: two tensors of this name, a file holds one: drop or rename one")
        seen.add(spec.name)


def _encode(header: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ModelError("the metadata for safetensors holds half a surrogate pair, which is no UTF-8") from error
