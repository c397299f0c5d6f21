"""Shards with an index: one JSON file says which shard holds which tensor, and both must say the same.

    {"metadata": {"total_size": bytes}, "weight_map": {tensor name: shard's plain file name}}

Hugging Face's folders have it for .safetensors and for .bin shards. An index is as untrusted as any file: a shard's name
is a plain name beside the index, never a path.
Source: huggingface_hub, serialization/_base.py; transformers, modeling_utils.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import FormatError, quoted
from .checkpoint import SourceFile, StoredTensor
from .safetensors_read import check_name, parse_json
from .sniff import SAFETENSORS_HEADER_CAP, expect

Shard = tuple[Mapping[str, StoredTensor], Mapping[str, str]]  # its tensors and metadata
Indexed = tuple[dict[str, StoredTensor], dict[str, str], tuple[Path, ...]]  # and the files, the index last


def open_indexed(index: Path, suffix: str, names: re.Pattern[str], read_shard: Callable[[Path], Shard]) -> Indexed:
    """Open every shard that `index` (`<stem><suffix>.index.json`) names and hold the index against what they contain."""
    weight_map, total_size = _read_index(index, suffix, names)
    folder, shards = index.parent, sorted(set(weight_map.values()))
    _check_files(index, suffix, shards)
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, str] = {}
    misplaced: list[str] = []
    for shard in shards:
        found, words = read_shard(folder / shard)
        metadata = {**words, **metadata}
        for name, tensor in found.items():
            if weight_map.get(name) != shard:
                misplaced.append(f"{name} in {shard} (index: {weight_map.get(name, 'absent')})")
            tensors.setdefault(name, tensor)
    missing = [f"{name} in {shard}" for name, shard in weight_map.items() if name not in tensors]
    if missing or misplaced:
        raise FormatError(
            f"{index}: index and shards disagree; missing: {listed(missing)}; unexpected: {listed(misplaced)}: "
            "fetch the files again, together"
        )
    _check_total(index, total_size, tensors)
    return tensors, metadata, (*(folder / shard for shard in shards), index)


def _check_files(index: Path, suffix: str, shards: Sequence[str]) -> None:
    """Every shard of the index is there, and no other shard of the same model."""
    on_disk = {entry.name for entry in index.parent.iterdir()}
    absent = [shard for shard in shards if shard not in on_disk]
    if absent:
        raise FormatError(f"{index}: {len(absent)} of {len(shards)} shards are missing: {listed(absent)}")
    stem = index.name.removesuffix(f"{suffix}.index.json")
    own = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?" + re.escape(suffix))
    extra = sorted(name for name in on_disk.difference(shards) if own.fullmatch(name))
    if extra:
        raise FormatError(f"{index}: files beside it that it does not name: {listed(extra)}: remove what is stale")


def _check_total(index: Path, total_size: float | None, tensors: Mapping[str, StoredTensor]) -> None:
    """`total_size` is what the tensors take; those in the same bytes may count once; old writers counted a BOOL as a bit."""
    total = sum(tensor.nbytes for tensor in tensors.values())
    bools = sum(tensor.nbytes for tensor in tensors.values() if tensor.dtype.name == "BOOL")
    places = {(tensor.file.path, tensor.offset): tensor.nbytes for tensor in tensors.values()}
    if total_size is not None and total_size not in (total, total - bools + bools / 8, sum(places.values())):
        raise FormatError(
            f"{index}: total_size is {total_size}, the shards hold {total} bytes of tensors: "
            "fetch the files again, or delete total_size from the index if they are right"
        )


def _read_index(index: Path, suffix: str, names: re.Pattern[str]) -> tuple[dict[str, str], float | None]:
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
        if not isinstance(shard, str) or not names.fullmatch(shard):
            raise FormatError(
                f"{index}: {name}: the shard is {quoted(shard)}, it must be the plain name of a {suffix} file"
            )
    words = content.get("metadata", {})
    total_size = words.get("total_size") if isinstance(words, dict) else None
    if total_size is not None and type(total_size) not in (int, float):
        raise FormatError(f"{index}: total_size is {quoted(total_size)}, it must be a number of bytes")
    return weight_map, total_size


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names) or "none"
