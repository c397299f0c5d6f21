"""pytorch_model*.bin: a Hugging Face folder's weights as torch.save wrote them, whole or in shards with an index.

    pytorch_model.bin                                      one file
    pytorch_model-0000N-of-0000K.bin, and                  shards; "weight_map" of the index names the shard of each tensor
    pytorch_model.bin.index.json

Each file is the zip of `pth` with a pickle in it, parsed and never run. Index and shards must agree in both directions.
A tied head is a second name for the same bytes of the same storage, which an index's total_size counts once.
Source: transformers 4, modeling_utils.py (shard_checkpoint).
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError
from .checkpoint import Checkpoint
from .pth import open_pth
from .weight_map import open_indexed

INDEX_SUFFIX = ".bin.index.json"
BIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.bin")
SINGLE = "pytorch_model.bin"


def is_torch_bin(folder: Path) -> bool:
    """True for a folder with pytorch_model.bin, or with its index."""
    return (folder / SINGLE).exists() or (folder / f"pytorch_model{INDEX_SUFFIX}").exists()


def open_torch_bin(path: Path) -> Checkpoint:
    """A .bin file, an index, or a folder -> its tensors, without reading their data.

    FormatError for anything malformed or inconsistent, InputError where there is nothing to open.
    """
    if path.is_dir():
        index, single = path / f"pytorch_model{INDEX_SUFFIX}", path / SINGLE
        path = index if index.exists() else single
        if not path.exists():
            raise InputError(f"{path.parent}: holds neither {SINGLE} nor {index.name}")
    if not path.name.endswith(INDEX_SUFFIX):
        found = open_pth(path)
        return Checkpoint("bin", found.tensors, found.metadata, (path,))
    tensors, _, files = open_indexed(path, ".bin", BIN, lambda shard: (open_pth(shard).tensors, {}))
    return Checkpoint("bin", tensors, {}, files)
