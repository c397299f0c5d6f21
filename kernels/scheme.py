"""A `Scheme` says how one logical weight is stored, and finds the fastest exact copy of its arithmetic.

A block scheme (`q4_k`) stores one tensor of one `DType`. The kernel of a type is `cpu/<type>.py` where there is one,
else `reference/<type>.py`; both give the same numbers, so which one runs never shows in the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType, Shape
from ..errors import UsageError

Rows = NDArray[np.float32]
Packed = NDArray[np.uint8]


@dataclass(frozen=True)
class Scheme:
    """One logical weight -> one or more stored tensors, keyed by the suffix that their names take.

    stored  (shape) -> {suffix: (shape, DType)}, before any data is read
    encode  (float32[n, columns], float32[columns] | None) -> {suffix: uint8[n, row_nbytes]}
    decode  the inverse of encode
    """

    name: str
    stored: Callable[[Shape], dict[str, tuple[Shape, DType]]]
    encode: Callable[[Rows, Rows | None], dict[str, Packed]]
    decode: Callable[[dict[str, Packed]], Rows]


@cache
def can_decode(dtype: DType) -> bool:
    """True where smelt has the arithmetic of `dtype`: every kernel decodes."""
    return find_spec(f"{__package__}.reference.{dtype.name.lower()}") is not None


@cache
def can_encode(dtype: DType) -> bool:
    """True where smelt can also make `dtype`: a reference without `encode` is of a type that it only reads."""
    return can_decode(dtype) and hasattr(import_module(f"{__package__}.reference.{dtype.name.lower()}"), "encode")


@cache
def kernel(dtype: DType) -> ModuleType:
    """The module with `decode` and, for most, `encode` of `dtype`; UsageError for a type without arithmetic (integers)."""
    for room in ("cpu", "reference"):
        name = f"{__package__}.{room}.{dtype.name.lower()}"
        if find_spec(name) is not None:
            return import_module(name)
    raise UsageError(f"{dtype.name}: smelt has no kernel for this type")


def decode(dtype: DType, packed: Packed) -> Rows:
    """uint8[n, row_nbytes] of any dtype -> float32[n, columns], exactly as the format defines it."""
    rows: Rows = kernel(dtype).decode(packed)
    return rows


@cache
def cast_scheme(dtype: DType) -> Scheme:
    """One tensor of `dtype`: a block type quantizes, a plain float type rounds to nearest.

    Its `encode` raises UsageError for a type that smelt can only read.
    """

    def encode(rows: Rows, importance: Rows | None) -> dict[str, Packed]:
        if not can_encode(dtype):
            raise UsageError(f"{dtype.name}: smelt can read this type, not make it; choose another")
        return {"": kernel(dtype).encode(rows, importance)}

    def decode_one(stored: dict[str, Packed]) -> Rows:
        return decode(dtype, stored[""])

    return Scheme(dtype.name.lower(), lambda shape: {"": (shape, dtype)}, encode, decode_one)
