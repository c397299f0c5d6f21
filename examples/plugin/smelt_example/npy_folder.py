"""A folder with one .npy file for each tensor, which numpy opens by itself.

    tensors.json   {"format": "npy-folder", "words": {...}, "tensors": {name: [file, dtype]}}
    00000.npy      magic, version 1.0, a Python literal of dtype and shape padded to 64 bytes, then the elements

numpy has no bfloat16: such a tensor lies there as its 16 bits (`<u2`), and tensors.json knows better.
Source: numpy, numpy/lib/format.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from smelt.dtypes import DTYPES
from smelt.errors import FormatError, ModelError
from smelt.formats.checkpoint import Checkpoint, FileLayout, SourceFile, StoredTensor, TensorSpec, literal
from smelt.formats.container import Format

INDEX = "tensors.json"
DESCR = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I8": "|i1", "U8": "|u1"}
HEADER_CAP = 4096  # bytes; what this writer makes has 128


def claims(path: Path) -> bool:
    """A folder whose tensors.json says so."""
    return path.is_dir() and (path / INDEX).is_file() and b'"npy-folder"' in (path / INDEX).read_bytes()[:256]


def open_folder(path: Path) -> Checkpoint:
    """Every tensor's place; FormatError for an index or a header that does not fit its file."""
    index = _index(path / INDEX)
    tensors, files = {}, [path / INDEX]
    for name, entry in index["tensors"].items():
        file, dtype = entry
        if Path(file).name != file or dtype not in DESCR:
            raise FormatError(f"{path / INDEX}: {name}: has the file {file!r} and the dtype {dtype!r}")
        tensors[name] = _tensor(name, path / file, dtype)
        files.append(path / file)
    return Checkpoint("npy-folder", tensors, index["words"], tuple(files))


def _index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads(path.read_bytes())
        tensors, words = index["tensors"], index["words"]
        sound = all(len(entry) == 2 and all(type(word) is str for word in entry) for entry in tensors.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: is no index of an npy-folder: {error}") from None
    if not sound or not tensors or not isinstance(words, dict):
        raise FormatError(f"{path}: is no index of an npy-folder: every tensor needs a file and a dtype")
    return {"tensors": tensors, "words": words}


def _tensor(name: str, path: Path, dtype: str) -> StoredTensor:
    file = SourceFile(path)
    head = io.BytesIO(file.read(0, min(HEADER_CAP, file.nbytes)))
    try:
        version = np.lib.format.read_magic(head)
        shape, by_column, found = np.lib.format.read_array_header_1_0(head)
    except ValueError as error:
        raise FormatError(f"{path}: is no .npy file: {error}") from None
    stored = StoredTensor(name, tuple(int(size) for size in shape), DTYPES[dtype], file, head.tell())
    if version != (1, 0) or by_column or found.str != DESCR[dtype] or head.tell() + stored.nbytes != file.nbytes:
        raise FormatError(
            f"{path}: holds {found.str} {list(shape)} in {file.nbytes} bytes, which is no whole {dtype} tensor"
        )
    return stored


def layout(specs: Sequence[TensorSpec], words: Mapping[str, str]) -> dict[str, FileLayout]:
    """A file for each tensor and the index; ModelError for a dtype that numpy has nothing for."""
    files, entries = {}, {}
    for number, spec in enumerate(specs):
        if spec.dtype.name not in DESCR:
            raise ModelError(f"{spec.name}: an npy-folder cannot hold {spec.dtype}, only {' '.join(DESCR)}")
        head = io.BytesIO()
        said = {"descr": DESCR[spec.dtype.name], "fortran_order": False, "shape": spec.shape}
        np.lib.format.write_array_header_1_0(head, said)
        file = f"{number:05d}.npy"
        files[file] = FileLayout(head.tell() + spec.nbytes, ((0, head.getvalue()),), {spec.name: head.tell()})
        entries[spec.name] = [file, spec.dtype.name]
    index = {"format": "npy-folder", "words": dict(words), "tensors": entries}
    return {INDEX: literal((json.dumps(index, indent=1) + "\n").encode()), **files}


FORMAT = Format("npy-folder", claims, open_folder, layout)
