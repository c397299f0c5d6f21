"""One GGUF file's header -> metadata and tensors, believed only after every check.

Counts and lengths are held against the bytes that are left before they size anything; sums and products are Python's,
which do not wrap. Every tensor must begin where the one before it ends, padded, as ggml demands. The rules are those of
ggml's gguf.cpp; where smelt is stricter, an honest writer cannot tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DTYPES
from ..errors import FormatError, quoted
from . import gguf_types as types
from .checkpoint import SourceFile, StoredTensor
from .gguf_types import SCALARS, GGUFArray, GGUFValue, padded
from .sniff import expect

FIRST_READ = 1 << 20  # bytes; a header that is longer is read in doubling steps
HEADER_CAP = 1 << 27  # bytes; a vocabulary of 256 k tokens with its merges takes 16 MiB
STRINGS_CAP = 1 << 22  # strings of an array; each costs 8 bytes of `starts`, even where the file is sparse
STRIDE = 4096  # strings walked between two checks
SMALLEST_PAIR = 8 + 1 + 4 + 1  # bytes: a key of one letter with a u8
SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


class Header:
    """The file's bytes from its beginning, read as far as they are needed, and a position in them."""

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self.content = file.read(0, min(FIRST_READ, file.nbytes))
        self.position = 0

    def fail(self, message: str) -> FormatError:
        """The error that says where in the file the reader stands."""
        return FormatError(f"{self.file.path}: byte {self.position}: {message}")

    def need(self, nbytes: int, what: str) -> None:
        """Have `nbytes` bytes from the position on in `content`; FormatError where the file or the cap ends first."""
        end = self.position + nbytes
        if end <= len(self.content):
            return
        if end > self.file.nbytes:
            raise self.fail(
                f"{what} needs {nbytes} bytes, the file ends at {self.file.nbytes}: cut, or its lengths lie"
            )
        if end > HEADER_CAP:
            raise self.fail(f"{what} would make the header {end} bytes long, at most {HEADER_CAP} are allowed")
        self.prefetch(nbytes)

    def prefetch(self, nbytes: int) -> None:
        """Have `nbytes` bytes from the position on in `content`, or as many as the file and the cap allow."""
        end = self.position + nbytes
        have = len(self.content)
        more = min(max(end, 2 * have), self.file.nbytes, HEADER_CAP)
        if have < min(end, more):
            self.content += self.file.read(have, more - have)

    def take(self, nbytes: int, what: str) -> bytes:
        """The next `nbytes` bytes."""
        self.need(nbytes, what)
        begin, self.position = self.position, self.position + nbytes
        return self.content[begin : self.position]

    def u32(self, what: str) -> int:
        """The next four bytes as a number."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """The next eight bytes as a number."""
        return int.from_bytes(self.take(8, what), "little")

    def count(self, smallest: int, what: str) -> int:
        """A number of records of at least `smallest` bytes each; FormatError where the file cannot hold so many."""
        found = self.u64(what)
        if found * smallest > self.file.nbytes - self.position:
            raise self.fail(f"{what} is {found}, more than the rest of the file of {self.file.nbytes} bytes can hold")
        return found

    def text(self, what: str) -> str:
        """A string: u64 length, then UTF-8."""
        raw = self.take(self.u64(what), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} ends here and is not UTF-8: {quoted(raw)}") from error

    def name(self, what: str, cap: int) -> str:
        """A string that names something: 1 to `cap` bytes, printable."""
        found = self.text(what)
        if not found.isprintable() or not 0 < len(found.encode()) <= cap:
            raise self.fail(f"{what} {quoted(found)} ends here: it is empty, not printable, or over {cap} bytes")
        return found


def read_file(path: Path) -> tuple[dict[str, GGUFValue], dict[str, StoredTensor]]:
    """One file -> (typed metadata, tensors in file order), both in full; the data is not read."""
    file = SourceFile(path)
    expect(file, "gguf")
    header = Header(file)
    n_tensors, n_pairs = _read_counts(header)
    metadata: dict[str, GGUFValue] = {}
    for i in range(n_pairs):
        key = header.name(f"key {i}", types.KEY_CAP)
        if key in metadata:
            raise header.fail(f"the key {key} ends here for the second time")
        metadata[key] = _read_value(header, key)
    alignment = metadata.get("general.alignment", GGUFValue("u32", types.DEFAULT_ALIGNMENT))
    if not types.is_alignment(alignment):
        raise header.fail(
            f"general.alignment is {alignment.type} {quoted(alignment.value)}, wanted a u32, a power of two "
            f"up to {types.ALIGNMENT_CAP}"
        )
    return metadata, _read_tensors(header, n_tensors, alignment.value)


def _read_counts(header: Header) -> tuple[int, int]:
    """The first 24 bytes -> (tensors, keys)."""
    if header.take(4, "the magic") != b"GGUF":
        raise FormatError(f"{header.file.path}: byte 0: {quoted(header.content[:4])}, wanted b'GGUF'")
    version = header.u32("the version")
    if version & 0xFFFF == 0:
        raise header.fail("the version is byte-swapped: this is a big-endian file, smelt reads little-endian ones")
    if version not in (2, 3):
        raise header.fail(f"GGUF version {version}, smelt reads 2 and 3: convert the original weights again")
    n_tensors = header.count(SMALLEST_TENSOR, "the number of tensors")
    return n_tensors, header.count(SMALLEST_PAIR, "the number of keys")


def _read_value(header: Header, key: str) -> GGUFValue:
    kind = _read_type(header, key)
    if kind == "array":
        element_type = _read_type(header, key)
        if element_type == "array":
            raise header.fail(f"{key} is an array of arrays, which no reader of GGUF supports")
        return GGUFValue(f"[{element_type}]", _read_array(header, key, element_type))
    if kind == "string":
        return GGUFValue(kind, header.text(key))
    raw = header.take(SCALARS[kind].size, key)
    _check_bools(header, key, kind, raw)
    return GGUFValue(kind, SCALARS[kind].unpack(raw)[0])


def _read_type(header: Header, key: str) -> str:
    number = header.u32(key)
    if number not in types.VALUE_TYPES:
        raise header.fail(f"{key} has the value type {number}, wanted 0 to {max(types.VALUE_TYPES)}")
    return types.VALUE_TYPES[number]


def _check_bools(header: Header, key: str, kind: str, raw: bytes) -> None:
    if kind == "bool" and raw.strip(b"\0\1"):
        raise header.fail(f"{key} ends here and holds a bool that is neither 0 nor 1")


def _read_array(header: Header, key: str, element_type: str) -> GGUFArray:
    where = f"{header.file.path}: {key}"
    size = 8 if element_type == "string" else SCALARS[element_type].size
    count = header.count(size, key)
    if element_type == "string":
        if count > STRINGS_CAP:
            raise header.fail(f"{key} has {count} strings, at most {STRINGS_CAP} are allowed")
        begin = header.position
        starts = _walk_strings(header, key, count)
        return GGUFArray(element_type, header.content[begin : header.position], starts, where)
    raw = header.take(count * size, key)
    _check_bools(header, key, element_type, raw)
    return GGUFArray(element_type, raw, where=where)


def _walk_strings(header: Header, key: str, count: int) -> NDArray[np.int64]:
    """Step over `count` strings -> int64[count + 1], where each begins, counted from the first.

    Each string's length says where the next begins, so this is a chain that cannot be vectorised. Almost all lengths
    are below 256: step by their lowest byte alone, then check all eight bytes of a stride's lengths at once. A stride
    that fails the check, or runs past the end, is walked again one full length at a time.
    """
    begin = header.position
    parts = [np.zeros(1, np.int64)]
    for first in range(0, count, STRIDE):
        n = min(STRIDE, count - first)
        ends = _stride_by_bytes(header, n)
        if ends is None:
            ends = _stride_by_lengths(header, key, n)
        header.position = int(ends[-1])
        parts.append(ends - begin)
    return np.concatenate(parts)


def _hops(content: bytes, position: int, n: int) -> Iterator[int]:
    """`position`, then where each of `n` strings ends, by the lowest byte of its length."""
    yield position
    for _ in range(n):
        position += content[position] + 8
        yield position


def _stride_by_bytes(header: Header, n: int) -> NDArray[np.int64] | None:
    """Where each of the next `n` strings ends, all shorter than 256 bytes; None where that is not so."""
    header.prefetch(n * (8 + 255))
    content = header.content
    try:
        places = np.fromiter(_hops(content, header.position, n), np.int64, n + 1)
    except IndexError:
        return None
    if places[-1] > len(content):
        return None
    lengths_anywhere = np.ndarray((len(content) - 7,), "<u8", content, strides=(1,))
    lengths = lengths_anywhere[places[:-1]]
    return None if (lengths > 255).any() else places[1:]


def _stride_by_lengths(header: Header, key: str, n: int) -> NDArray[np.int64]:
    """Where each of the next `n` strings ends, whatever their lengths."""
    ends = np.empty(n, np.int64)
    for i in range(n):
        length = header.u64(key)
        header.need(length, key)
        header.position += length
        ends[i] = header.position
    return ends


def _read_tensors(header: Header, n_tensors: int, alignment: int) -> dict[str, StoredTensor]:
    """The tensor records, placed: each at the padded end of the one before it, the last at the end of the file."""
    places: dict[str, tuple[tuple[int, ...], str, int]] = {}
    end = unpadded = 0
    for i in range(n_tensors):
        name = header.name(f"the name of tensor {i}", types.NAME_CAP - 1)
        if name in places:
            raise header.fail(f"the tensor {name} is named here for the second time")
        shape, dtype = _read_shape(header, name)
        offset = header.u64(name)
        if offset != end:
            raise header.fail(f"{name} has the offset {offset}, wanted {end}: tensors lie in order, without gaps")
        places[name] = shape, dtype, offset
        unpadded = end + DTYPES[dtype].tensor_nbytes(shape)
        end = padded(unpadded, alignment)
        if unpadded > header.file.nbytes:
            raise header.fail(f"{name} {dtype} {list(shape)} ends outside the file of {header.file.nbytes} bytes")
    file = header.file
    start = padded(header.position, alignment)
    if places and file.nbytes < start + unpadded:
        raise FormatError(
            f"{file.path}: the tensors end at byte {start + unpadded}, the file at {file.nbytes}: "
            "it was cut, fetch it again"
        )
    if file.nbytes > start + end:
        raise FormatError(f"{file.path}: {file.nbytes - start - end} bytes trail the last tensor at byte {start + end}")
    return {
        name: StoredTensor(name, shape, DTYPES[dtype], file, start + o) for name, (shape, dtype, o) in places.items()
    }


def _read_shape(header: Header, name: str) -> tuple[tuple[int, ...], str]:
    """(shape, outermost dimension first; dtype): ggml stores the innermost first."""
    n_dims = header.u32(name)
    if not 1 <= n_dims <= types.MAX_DIMS:
        raise header.fail(f"{name} has {n_dims} dimensions, wanted 1 to {types.MAX_DIMS}")
    shape = tuple(header.u64(name) for _ in range(n_dims))[::-1]
    number = header.u32(name)
    dtype = types.TENSOR_DTYPES.get(number)
    if dtype is None:
        raise header.fail(f"{name} has the type {number}, which is unknown, retired, or never stored in files")
    if not all(0 < size < 1 << 63 for size in shape) or shape[-1] % DTYPES[dtype].block:
        raise header.fail(
            f"{name} has the shape {list(shape)}, {dtype} wants sizes from 1 on, the last divisible by "
            f"{DTYPES[dtype].block}"
        )
    return shape, dtype
