"""GGUF: typed keys, tensor records, then the data, each tensor on a multiple of the alignment.

    0   "GGUF" | u32 version | u64 n_tensors | u64 n_keys
    24  n_keys    x  string key | u32 type | value
        n_tensors x  string name | u32 n_dims | u64 ne[n_dims] | u32 type | u64 offset from the beginning of the data
        zeros up to a multiple of general.alignment (32)
        data, each tensor padded to the alignment

    string = u64 length | UTF-8        array = u32 element type | u64 count | elements        little-endian throughout

`ne` counts from the innermost dimension outwards, shapes in smelt from the outermost: ne [in, out] is [out, in].
A large model may be split into `name-00001-of-00003.gguf` and so on: opening one part opens all.

Source: ggml, docs/gguf.md and gguf.cpp (versions 2 and 3 differ in nothing that a little-endian file shows).
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import FormatError
from .checkpoint import Checkpoint, StoredTensor
from .gguf_read import read_file
from .gguf_types import GGUFArray, GGUFMetadata, GGUFValue
from .gguf_write import gguf_layout, gguf_shards

__all__ = ["GGUFArray", "GGUFMetadata", "GGUFValue", "gguf_layout", "gguf_shards", "open_gguf"]

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

Header = tuple[dict[str, GGUFValue], dict[str, StoredTensor]]


def open_gguf(path: Path) -> Checkpoint:
    """A file, or any part of a split set -> all its tensors, without reading their data.

    `metadata` is a `GGUFMetadata`: plain values, arrays as `GGUFArray`; a split set's is its first part's, without
    `split.*`. FormatError for anything malformed, for a part that is missing or belongs to another set.
    """
    header = read_file(path)
    count = _split(path, header, "count", 1)
    name = PART.fullmatch(path.name)
    if count <= 1:
        if name and int(name["count"]) > 1:
            raise FormatError(
                f"{path}: is named as one of {int(name['count'])} parts, but has no split.count: rename it"
            )
        files: tuple[Path, ...] = (path,)
        headers = [header]
    else:
        if not name or int(name["count"]) != count or int(name["number"]) != _split(path, header, "no", -1) + 1:
            raise FormatError(
                f"{path}: is part {_split(path, header, 'no', -1) + 1} of {count}, so its name must end in "
                f"-{_split(path, header, 'no', -1) + 1:05d}-of-{count:05d}.gguf: give it back its name"
            )
        files = tuple(path.with_name(f"{name['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1))
        missing = [file.name for file in files if not file.exists()]
        if missing:
            raise FormatError(f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:100])}")
        headers = [header if file == path else read_file(file) for file in files]
    tensors = _join(files, headers)
    metadata = {key: value for key, value in headers[0][0].items() if not key.startswith("split.")}
    return Checkpoint("gguf", tensors, GGUFMetadata(metadata), files)


def _split(path: Path, header: Header, key: str, absent: int) -> int:
    """The number under `split.<key>`; FormatError where it is not one."""
    value = header[0].get(f"split.{key}", GGUFValue("i32", absent)).value
    if type(value) is not int:
        raise FormatError(f"{path}: split.{key} is not a whole number")
    return value


def _join(files: tuple[Path, ...], headers: list[Header]) -> dict[str, StoredTensor]:
    """All parts' tensors; FormatError where two parts disagree about the set, or hold the same tensor."""
    tensors: dict[str, StoredTensor] = {}
    total = sum(len(found) for _, found in headers)
    for i, (file, header) in enumerate(zip(files, headers, strict=True)):
        if len(files) > 1:
            said = _split(file, header, "no", -1), _split(file, header, "count", 1)
            if said != (i, len(files)):
                raise FormatError(f"{file}: says it is part {said[0] + 1} of {said[1]}, wanted {i + 1} of {len(files)}")
        wanted = _split(file, header, "tensors.count", total)
        if wanted != total:
            raise FormatError(f"{file}: split.tensors.count is {wanted}, the {len(files)} parts hold {total} tensors")
        for name, tensor in header[1].items():
            if name in tensors:
                raise FormatError(
                    f"{file}: {name}: is in {tensors[name].file.path.name} too: one set holds a tensor once"
                )
            tensors[name] = tensor
    return tensors
