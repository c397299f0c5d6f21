"""GGUF's two tables of types, and its values: typed where they are written, plain where they are read.

    GGUFValue("u32", 4096)        GGUFValue("string", "llama")
    GGUFValue("[f32]", [0, -1.5]) an array: its elements' type in brackets

An array stays the bytes it has in the file, because a vocabulary has hundreds of thousands of entries and most readers
want none of them: `GGUFArray` decodes what is asked for.

Source: ggml, docs/gguf.md (value types) and ggml.h, `enum ggml_type` (tensor types; ids left out here are retired or,
like Q8_1 and Q8_K, never stored).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from struct import Struct
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError

# value type -> id in the file
VALUE_IDS = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "string": 8,
    "array": 9,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
VALUE_TYPES = {number: name for name, number in VALUE_IDS.items()}

# value type of fixed size -> its struct format, which is numpy's too
SCALARS = {
    "u8": Struct("<B"),
    "i8": Struct("<b"),
    "u16": Struct("<H"),
    "i16": Struct("<h"),
    "u32": Struct("<I"),
    "i32": Struct("<i"),
    "f32": Struct("<f"),
    "bool": Struct("<?"),
    "u64": Struct("<Q"),
    "i64": Struct("<q"),
    "f64": Struct("<d"),
}

# dtype -> id in the file
TENSOR_IDS = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q2_K": 10,
    "Q3_K": 11,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
    "IQ2_XXS": 16,
    "IQ2_XS": 17,
    "IQ3_XXS": 18,
    "IQ1_S": 19,
    "IQ4_NL": 20,
    "IQ3_S": 21,
    "IQ2_S": 22,
    "IQ4_XS": 23,
    "I8": 24,
    "I16": 25,
    "I32": 26,
    "I64": 27,
    "F64": 28,
    "IQ1_M": 29,
    "BF16": 30,
    "TQ1_0": 34,
    "TQ2_0": 35,
    "MXFP4": 39,
    "NVFP4": 40,
}
TENSOR_DTYPES = {number: name for name, number in TENSOR_IDS.items()}

DEFAULT_ALIGNMENT = 32  # bytes, where general.alignment does not say otherwise
ALIGNMENT_CAP = 1 << 16
MAX_DIMS = 4
NAME_CAP = 64  # bytes of a tensor's name with the NUL that ggml adds
KEY_CAP = 65535  # bytes


@dataclass(frozen=True)
class GGUFArray(Sequence[Any]):
    """An array's elements as the file holds them; a Sequence that decodes on demand.

    element_type  a key of `VALUE_IDS`, never "array"
    raw           the elements' bytes; a string is u64 length + UTF-8
    starts        strings only: int64[n + 1], where in `raw` each begins, and the end
    where         file and key, for messages
    """

    element_type: str
    raw: bytes = field(repr=False)
    starts: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    where: str = field(default="", repr=False, compare=False)

    def __len__(self) -> int:
        if self.starts is not None:
            return len(self.starts) - 1
        return len(self.raw) // SCALARS[self.element_type].size

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One element, or a list of a slice's; FormatError for a string that is not UTF-8."""
        if isinstance(index, slice):
            return self.tolist()[index]
        if self.starts is None:
            return self.numbers()[index].item()
        position = range(len(self))[index]
        return self._decode(position, int(self.starts[position]) + 8, int(self.starts[position + 1]))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def tolist(self) -> list[Any]:
        """All elements as plain Python values."""
        if self.starts is None:
            numbers: list[Any] = self.numbers().tolist()
            return numbers
        ends, raw = self.starts.tolist(), self.raw
        try:
            return [raw[begin + 8 : end].decode() for begin, end in pairwise(ends)]
        except UnicodeDecodeError:  # which one it is
            return [self._decode(i, ends[i] + 8, ends[i + 1]) for i in range(len(self))]

    def numbers(self) -> NDArray[Any]:
        """The elements of an array of numbers or bools, read-only and not copied."""
        return np.frombuffer(self.raw, SCALARS[self.element_type].format)

    def _decode(self, position: int, begin: int, end: int) -> str:
        try:
            return self.raw[begin:end].decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: string {position} of the array is not UTF-8") from error


@dataclass(frozen=True)
class GGUFValue:
    """A value and the type that it has in the file: a key of `VALUE_IDS`, or `[string]` and the like for an array."""

    type: str
    value: Any


class GGUFMetadata(Mapping[str, Any]):
    """A file's keys: plain values by key, and in `typed` as `GGUFValue`, ready to be written again."""

    def __init__(self, typed: Mapping[str, GGUFValue]) -> None:
        self.typed = typed

    def __getitem__(self, key: str) -> Any:
        return self.typed[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.typed)

    def __len__(self) -> int:
        return len(self.typed)


def padded(nbytes: int, alignment: int) -> int:
    """`nbytes` rounded up to a multiple of `alignment`."""
    return -(-nbytes // alignment) * alignment


def is_alignment(value: GGUFValue) -> bool:
    """Whether `value` may stand under general.alignment: a u32, a power of two, and no waste."""
    return value.type == "u32" and 0 < value.value <= ALIGNMENT_CAP and value.value & (value.value - 1) == 0
