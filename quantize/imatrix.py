"""Importance matrices of llama-imatrix: for every matrix, the mean square of each of its inputs on a calibration text.

    .gguf   general.type "imatrix"; <name>.in_sum2 F32[n_mat, columns], <name>.counts F32[n_mat, 1] for every matrix;
            imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size           value = in_sum2 / count, 1 where count is 0
    .dat    i32 n_entries, then each: i32 length | name | i32 n_calls | i32 n_values | f32[n_values]
            then, in newer ones: i32 chunks | i32 length | dataset              value = number / n_calls, if n_calls > 0

Little-endian. `n_mat` is the number of experts, 1 in a dense model. Source: llama.cpp, imatrix.cpp and its loader.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.architecture import Match, family_by, match_names
from ..convert.model import Model
from ..dtypes import F32, DType, matrix_shape
from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.checkpoint import StoredTensor
from ..formats.gguf import GGUFArray, open_gguf
from ..formats.sniff import sniff
from ..kernels.scheme import Rows

NAME_CAP = 1024  # bytes; ggml's tensor names have at most 63
INT_MAX = 2**31 - 1


@dataclass(frozen=True)
class Importance:
    """values: {GGUF tensor name: float32[n_mat * columns]}; datasets and chunks: what it was measured on, if it says."""

    path: Path
    values: Mapping[str, Rows]
    datasets: tuple[str, ...]
    chunks: int

    @property
    def provenance(self) -> dict[str, str | int]:
        """What an output says of it, under llama.cpp's keys. The file by its name alone."""
        facts: dict[str, str | int] = {"quantize.imatrix.file": self.path.name}
        if self.datasets:
            facts["quantize.imatrix.dataset"] = self.datasets[0]
        facts["quantize.imatrix.entries_count"] = len(self.values)
        if self.chunks > 0:
            facts["quantize.imatrix.chunks_count"] = self.chunks
        return facts


def read_imatrix(path: Path) -> Importance:
    """Read a whole imatrix file of either format. FormatError for a malformed one, or a value that cannot be a mean square."""
    if not path.is_file():
        raise InputError(f"{path}: no such file: --imatrix names what llama-imatrix wrote")
    importance = _read_gguf(path) if sniff(path) == "gguf" else _read_legacy(path)
    for name, values in importance.values.items():
        bad = np.flatnonzero(~np.isfinite(values) | (values < 0))
        if bad.size:
            raise FormatError(
                f"{path}: {quoted(name)}: value {int(bad[0])} is {values[bad[0]]}, wanted a mean square: finite, at least 0: "
                "make the file again"
            )
    return importance


def for_model(
    importance: Importance, model: Model, dtypes: Mapping[str, DType]
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """-> ({canonical name: float32[columns]} for every tensor that `dtypes` makes a block type, notes).

    ModelError lists every entry that is missing or has another length. As in llama.cpp an entry of the embedding may be
    missing or of any length, and one of the head may be missing: llama-imatrix leaves them out by default.
    """
    family = family_by("name", model.architecture, str(importance.path))
    matches = match_names(family, "canonical", model.tensors, str(importance.path))
    found: dict[str, Rows] = {}
    wrong, without = [], []
    for name, match in matches.items():
        if not dtypes[name].is_block:
            continue
        gguf_name, columns = match.name("gguf"), model.tensors[name].shape[-1]
        values = _of_expert(importance.values.get(gguf_name), match, columns)
        if values is not None and len(values) == columns:
            found[name] = values
        elif match.row.role == "token_embd" or (match.row.role == "output" and values is None):
            without.append(gguf_name)
        elif values is None:
            wrong.append(f"{gguf_name} (missing)")
        else:
            wrong.append(f"{gguf_name} ({len(values)} values, wanted {columns})")
    if wrong:
        raise ModelError(
            f"{importance.path}: does not fit {len(wrong)} tensors: {', '.join(wrong)}: was it made for another model?"
        )
    return found, tuple(f"without importance: {name}" for name in without)


def _of_expert(values: Rows | None, match: Match, columns: int) -> Rows | None:
    """Of the values of a layer's stacked experts, those of one; other values as they are."""
    if values is None or not match.row.is_stacked("gguf") or match.expert is None or len(values) % columns:
        return values
    return values.reshape(-1, columns)[match.expert] if match.expert < len(values) // columns else values


def _read_gguf(path: Path) -> Importance:
    checkpoint = open_gguf(path)
    metadata, tensors = checkpoint.metadata, checkpoint.tensors
    kind = metadata.get("general.type")
    if kind != "imatrix":
        raise FormatError(f"{path}: general.type is {quoted(kind)}, wanted 'imatrix': it is a model or something else")
    names = {
        name.removesuffix(suffix) for name in tensors for suffix in (".in_sum2", ".counts") if name.endswith(suffix)
    }
    if not names:
        raise FormatError(f"{path}: holds no .in_sum2 tensors: make the file again")
    values = {}
    for name in sorted(names):
        pair = [tensors.get(f"{name}{suffix}") for suffix in (".in_sum2", ".counts")]
        if pair[0] is None or pair[1] is None:
            raise FormatError(f"{path}: {quoted(name)}: has only one of .in_sum2 and .counts: make the file again")
        values[name] = _mean_squares(path, name, _floats(path, pair[0]), _floats(path, pair[1]))
    datasets = metadata.get("imatrix.datasets")
    listed = tuple(datasets) if isinstance(datasets, GGUFArray) and datasets.element_type == "string" else ()
    return Importance(path, values, listed, _whole(path, metadata, "imatrix.chunk_count"))


def _whole(path: Path, metadata: Mapping[str, Any], key: str) -> int:
    value = metadata.get(key, 0)
    if type(value) is not int or value < 0:
        raise FormatError(f"{path}: {key} is {quoted(value)}, wanted a whole number: make the file again")
    return value


def _floats(path: Path, tensor: StoredTensor) -> Rows:
    """All of an F32 tensor as a vector."""
    if tensor.dtype != F32:
        raise FormatError(f"{path}: {quoted(tensor.name)} is {tensor.dtype}, wanted F32: make the file again")
    rows, _ = matrix_shape(tensor.shape)
    return tensor.read(0, rows).view("<f4").reshape(-1).astype(np.float32)


def _mean_squares(path: Path, name: str, sums: Rows, counts: Rows) -> Rows:
    """sums / counts for each of the `len(counts)` matrices; ones where a matrix (an expert) was never used."""
    if not counts.size or sums.size % counts.size:
        raise FormatError(f"{path}: {quoted(name)}: {sums.size} sums for {counts.size} counts: make the file again")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise FormatError(f"{path}: {quoted(name)}: a count is negative or not finite: make the file again")
    means = np.ones((counts.size, sums.size // counts.size), np.float32)
    np.divide(sums.reshape(means.shape), counts[:, None], out=means, where=counts[:, None] > 0)
    return means.reshape(-1)


@dataclass
class _Cursor:
    """A position in the bytes of a legacy file; every step is checked."""

    path: Path
    data: bytes
    position: int = 0

    def piece(self, nbytes: int, what: str) -> bytes:
        left = len(self.data) - self.position
        if nbytes > left:
            raise FormatError(
                f"{self.path}: byte {self.position}: {what} takes {nbytes} bytes, {left} are left: the file is truncated, or "
                "no imatrix file"
            )
        self.position += nbytes
        return self.data[self.position - nbytes : self.position]

    def number(self, what: str, low: int, high: int) -> int:
        (value,) = struct.unpack("<i", self.piece(4, what))
        if not low <= value <= high:
            raise FormatError(
                f"{self.path}: byte {self.position - 4}: {what} is {value}, wanted {low} to {high}: it is no imatrix file"
            )
        return int(value)

    def text(self, what: str, low: int, high: int) -> str:
        raw = self.piece(self.number(f"the length of {what}", low, high), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: {what} {quoted(raw)} is not UTF-8: it is no imatrix file") from None


def _read_legacy(path: Path) -> Importance:
    """The format of before 2025. FormatError with the byte where it stops making sense."""
    cursor = _Cursor(path, path.read_bytes())
    values: dict[str, Rows] = {}
    for entry in range(cursor.number("the number of entries", 1, INT_MAX)):
        name = cursor.text(f"the name of entry {entry}", 1, NAME_CAP)
        if name in values:
            raise FormatError(f"{path}: {quoted(name)} is in it twice: make the file again")
        n_calls = cursor.number(f"the calls of {quoted(name)}", 0, INT_MAX)
        n_values = cursor.number(f"the number of values of {quoted(name)}", 1, INT_MAX)
        sums = np.frombuffer(cursor.piece(4 * n_values, f"the values of {quoted(name)}"), "<f4").astype(np.float32)
        values[name] = sums / np.float32(n_calls) if n_calls else sums
    chunks, dataset = 0, ""
    if cursor.position < len(cursor.data):  # files of early 2024 end here
        chunks = cursor.number("the number of chunks", 0, INT_MAX)
    if cursor.position < len(cursor.data):
        dataset = cursor.text("the dataset", 0, INT_MAX)
    if cursor.position < len(cursor.data):
        raise FormatError(
            f"{path}: byte {cursor.position}: {len(cursor.data) - cursor.position} bytes follow the end: it is no imatrix file"
        )
    return Importance(path, values, (dataset,) if dataset else (), chunks)
