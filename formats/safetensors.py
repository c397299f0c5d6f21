"""safetensors: a JSON header says where every tensor lies, and every byte belongs to one tensor.

    0      u64 N, little-endian
    8      N bytes of JSON, "{" first, padded with spaces so that the data begins on a multiple of 8
             {"__metadata__": {str: str},
              name: {"dtype": "BF16", "shape": [out, in], "data_offsets": [begin, end]}, ...}
    8 + N  data, row-major, little-endian; offsets count from here, without holes or overlaps, to the end of the file

A folder is one `model.safetensors`, or shards with `model.safetensors.index.json`, whose `weight_map` names the shard
of each tensor: index and shards must agree in both directions. Nothing is believed that is not checked: the header's
length before it is read, duplicate keys (which parsers resolve differently), every number's type, every name.

Source: https://github.com/huggingface/safetensors (README, `Metadata::validate`); shards: huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import FormatError, InputError, quoted
from .checkpoint import Checkpoint, SourceFile, StoredTensor
from .safetensors_read import check_name, parse_json, read_file
from .safetensors_write import INDEX_SUFFIX, index_json, safetensors_layout, shard_plan
from .sniff import SAFETENSORS_HEADER_CAP, expect

__all__ = ["index_json", "open_safetensors", "safetensors_layout", "shard_plan"]

BASENAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
SHARD = re.compile(r"-\d{5}-of-(?!00001)\d{5}\.safetensors$")


def open_safetensors(path: Path) -> Checkpoint:
    """A file, an index, or a folder -> its tensors, without reading their data.

    In a folder the index decides; without one, `model.safetensors`, or the only *.safetensors there is.
    FormatError for anything malformed or inconsistent, InputError where there is nothing to open.
    """
    if path.is_dir():
        path = _choose(path)
    return _open_sharded(path) if path.name.endswith(INDEX_SUFFIX) else _open_single(path)


def _choose(folder: Path) -> Path:
    """The one index or file of a folder that is the model."""
    names = sorted(entry.name for entry in folder.iterdir())
    found = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if not found:
        found = [name for name in names if name.endswith(".safetensors")]
        shards = [name for name in found if SHARD.search(name)]
        if shards:
            raise FormatError(f"{folder}: shards without an index: {_listed(shards)}: fetch model{INDEX_SUFFIX} too")
        if "model.safetensors" in found:
            found = ["model.safetensors"]
    if not found:
        raise InputError(f"{folder}: holds neither *.safetensors nor *{INDEX_SUFFIX}")
    if len(found) > 1:
        raise FormatError(f"{folder}: holds more than one model: {_listed(found)}: name the one you mean")
    return folder / found[0]


def _open_single(path: Path) -> Checkpoint:
    tensors, metadata = read_file(path)
    return Checkpoint("safetensors", tensors, metadata, (path,))


def _open_sharded(index: Path) -> Checkpoint:
    """Open every shard and hold the index against what they contain."""
    weight_map, total_size = _read_index(index)
    folder, shards = index.parent, sorted(set(weight_map.values()))
    _check_files(index, shards)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    misplaced: list[str] = []
    for shard in shards:
        found, words = read_file(folder / shard)
        metadata = {**words, **metadata}
        for name, tensor in found.items():
            if weight_map.get(name) != shard:
                misplaced.append(f"{name} in {shard} (index: {weight_map.get(name, 'absent')})")
            tensors.setdefault(name, tensor)
    missing = [f"{name} in {shard}" for name, shard in weight_map.items() if name not in tensors]
    if missing or misplaced:
        raise FormatError(
            f"{index}: index and shards disagree; missing: {_listed(missing)}; unexpected: {_listed(misplaced)}: "
            "fetch the files again, together"
        )
    _check_total(index, total_size, tensors)
    return Checkpoint("safetensors", tensors, metadata, (*(folder / shard for shard in shards), index))


def _check_files(index: Path, shards: Sequence[str]) -> None:
    """Every shard of the index is there, and no other shard of the same model."""
    on_disk = {entry.name for entry in index.parent.iterdir()}
    absent = [shard for shard in shards if shard not in on_disk]
    if absent:
        raise FormatError(f"{index}: {len(absent)} of {len(shards)} shards are missing: {_listed(absent)}")
    stem = index.name.removesuffix(INDEX_SUFFIX)
    own = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors")
    extra = sorted(name for name in on_disk.difference(shards) if own.fullmatch(name))
    if extra:
        raise FormatError(f"{index}: files beside it that it does not name: {_listed(extra)}: remove what is stale")


def _check_total(index: Path, total_size: float | None, tensors: Mapping[str, StoredTensor]) -> None:
    """`total_size` is what the tensors take; older transformers counted a BOOL as one bit."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    bools = sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype.name == "BOOL")
    if total_size is not None and total_size not in (total, total - bools + bools / 8):
        raise FormatError(
            f"{index}: total_size is {total_size}, the shards hold {total} bytes of tensors: "
            "fetch the files again, or delete total_size from the index if they are right"
        )


def _read_index(index: Path) -> tuple[dict[str, str], float | None]:
    """The checked `weight_map`, and `total_size` where there is one."""
    file = SourceFile(index)
    expect(file, "an index")
    if file.nbytes > SAFETENSORS_HEADER_CAP:
        raise FormatError(f"{index}: is {file.nbytes} bytes long, an index has at most {SAFETENSORS_HEADER_CAP}")
    content = parse_json(index, file.read(0, file.nbytes), floats=True)
    file.close()
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: has no weight_map: it must name the shard of every tensor")
    for name, shard in weight_map.items():
        check_name(index, name)
        if not isinstance(shard, str) or not BASENAME.fullmatch(shard):
            raise FormatError(
                f"{index}: {name}: the shard is {quoted(shard)}, it must be the plain name of a .safetensors file"
            )
    words = content.get("metadata", {})
    total_size = words.get("total_size") if isinstance(words, dict) else None
    if total_size is not None and type(total_size) not in (int, float):
        raise FormatError(f"{index}: total_size is {quoted(total_size)}, it must be a number of bytes")
    return weight_map, total_size


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
