"""One safetensors file's header, believed only after every check.

    8 bytes u64 N <= 100 MB | N bytes of JSON | data: tensors without holes or overlaps, up to the end of the file

The checks are the reference reader's (https://github.com/huggingface/safetensors, `Metadata::validate`), and those that
Python's JSON needs on top: it takes the last of two equal keys, True for 1, NaN, and UTF-16.
"""

from __future__ import annotations

import json
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from ..dtypes import DTYPES
from ..errors import FormatError, quoted
from .checkpoint import SourceFile, StoredTensor
from .sniff import SAFETENSORS_HEADER_CAP, expect

# In the order in which the reference writer lays tensors out: widest first, so that each begins aligned.
FILE_ORDER = (
    *("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)
TENSOR_CAP = 1_000_000
DIMS_CAP = 32
NAME_CAP = 4096  # characters


def read_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """One file -> (tensors in the order of their data, metadata); its header is checked completely."""
    file = SourceFile(path)
    expect(file, "safetensors")
    if file.nbytes < 10:
        raise FormatError(f"{path}: is {file.nbytes} bytes long, the shortest safetensors file has 10")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > SAFETENSORS_HEADER_CAP:
        raise FormatError(f"{path}: byte 0: a header of {length} bytes, at most {SAFETENSORS_HEADER_CAP} are allowed")
    if 8 + length > file.nbytes:
        raise FormatError(
            f"{path}: byte 0: a header of {length} bytes in a file of {file.nbytes}: the file was cut, fetch it again"
        )
    header = parse_json(path, file.read(8, length), floats=False)
    metadata = _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > TENSOR_CAP:
        raise FormatError(f"{path}: {len(header)} tensors, at most {TENSOR_CAP} are allowed")
    placed = sorted(((*_check_entry(path, name, entry), name) for name, entry in header.items()), key=lambda p: p[:2])
    tensors: dict[str, StoredTensor] = {}
    end = 0
    for begin, stop, shape, dtype, name in placed:
        if begin != end:
            fault = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise FormatError(f"{path}: {name}: begins at byte {begin} of the data and {fault}, wanted {end}")
        tensors[name] = StoredTensor(name, shape, DTYPES[dtype], file, 8 + length + begin)
        end = stop
    if 8 + length + end != file.nbytes:
        raise FormatError(
            f"{path}: the tensors end at byte {8 + length + end}, the file at {file.nbytes}: "
            f"{'it was cut' if 8 + length + end > file.nbytes else 'bytes trail'}, fetch it again"
        )
    return tensors, metadata


def parse_json(path: Path, content: bytes, floats: bool) -> dict[str, Any]:
    """Strict JSON: UTF-8, an object from the first byte on, no key twice, no NaN; floats only where `floats`."""

    def refuse(number: str) -> float:
        raise FormatError(f"{path}: the header holds the number {quoted(number)}, wanted whole numbers")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = (quoted(key) for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise FormatError(f"{path}: keys that occur more than once: {', '.join(twice)}")
        return found

    if not content.startswith(b"{"):
        raise FormatError(f"{path}: the JSON begins with {content[:1]!r}, wanted '{{'")
    try:
        found = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=refuse,
            parse_float=float if floats else refuse,
        )
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: the JSON is not UTF-8 at its byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: the JSON is malformed at its character {error.pos}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deeply nested; an integer of thousands of digits
        raise FormatError(f"{path}: the JSON is nested too deeply or holds a number beyond all bounds") from error
    result: dict[str, Any] = found
    return result


def _check_metadata(path: Path, metadata: object) -> dict[str, str]:
    """`__metadata__` maps text to text, all of which can be encoded again."""
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is {quoted(metadata)}, wanted an object of strings")
    try:
        "".join((*metadata.keys(), *metadata.values())).encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"{path}: __metadata__ holds half a surrogate pair") from error
    return metadata


def is_name(name: str) -> bool:
    """Whether a tensor may be called `name`: something printable, and not the metadata's key."""
    return 0 < len(name) <= NAME_CAP and name.isprintable() and name != "__metadata__"


def check_name(path: Path, name: str) -> None:
    """FormatError for a tensor name that could not be shown or written again."""
    if not is_name(name):
        raise FormatError(f"{path}: the tensor name {quoted(name)} is empty, too long, reserved or not printable")


def _check_entry(path: Path, name: str, entry: object) -> tuple[int, int, tuple[int, ...], str]:
    """One header entry -> (begin, end, shape, dtype name); offsets agree with shape and dtype."""
    check_name(path, name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: {name}: is {quoted(entry)}, wanted an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in FILE_ORDER:
        raise FormatError(f"{path}: {name}: dtype {quoted(dtype)} is unknown, wanted one of {' '.join(FILE_ORDER)}")
    if not _is_sizes(shape) or len(shape) > DIMS_CAP:
        raise FormatError(f"{path}: {name}: shape {quoted(shape)}, wanted at most {DIMS_CAP} sizes from 0 on")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise FormatError(f"{path}: {name}: data_offsets {quoted(offsets)}, wanted [begin, end]")
    nbytes = prod(shape) * DTYPES[dtype].nbytes
    if offsets[1] - offsets[0] != nbytes:
        raise FormatError(
            f"{path}: {name}: data_offsets {offsets} span {offsets[1] - offsets[0]} bytes, "
            f"{dtype} of shape {shape} takes {nbytes}"
        )
    return offsets[0], offsets[1], tuple(shape), dtype


def _is_sizes(value: object) -> bool:
    """A list of whole numbers in the range of a u64; True is not a number here."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 64 for item in value)
