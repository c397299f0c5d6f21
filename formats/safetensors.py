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
from pathlib import Path

from ..errors import FormatError, InputError
from .checkpoint import Checkpoint
from .safetensors_read import read_file
from .safetensors_write import INDEX_SUFFIX, index_json, safetensors_layout, shard_plan
from .weight_map import listed, open_indexed

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
    if path.name.endswith(INDEX_SUFFIX):
        return Checkpoint("safetensors", *open_indexed(path, ".safetensors", BASENAME, read_file))
    tensors, metadata = read_file(path)
    return Checkpoint("safetensors", tensors, metadata, (path,))


def _choose(folder: Path) -> Path:
    """The one index or file of a folder that is the model."""
    names = sorted(entry.name for entry in folder.iterdir())
    found = [name for name in names if name.endswith(INDEX_SUFFIX)]
    if not found:
        found = [name for name in names if name.endswith(".safetensors")]
        shards = [name for name in found if SHARD.search(name)]
        if shards:
            raise FormatError(f"{folder}: shards without an index: {listed(shards)}: fetch model{INDEX_SUFFIX} too")
        if "model.safetensors" in found:
            found = ["model.safetensors"]
    if not found:
        raise InputError(f"{folder}: holds neither *.safetensors nor *{INDEX_SUFFIX}")
    if len(found) > 1:
        raise FormatError(f"{folder}: holds more than one model: {listed(found)}: name the one you mean")
    return folder / found[0]
