"""int8-row: a whole number from -127 to 127 for each weight, and one scale for each row.

<name>         I8  [rows, columns]    round(weight / scale), ties to even
<name>_scale   F32 [rows, 1]          the row's largest magnitude / 127; 1 where all its weights are zero
weight = code * scale                 8 bits a weight and 32 a row
"""

from __future__ import annotations

import numpy as np
from smelt.dtypes import DTYPES, F32, DType, Shape
from smelt.kernels.scheme import Packed, Rows, Scheme


def stored(shape: Shape) -> dict[str, tuple[Shape, DType]]:
    """What one weight [rows, columns] is stored as."""
    return {"": (shape, DTYPES["I8"]), "_scale": ((shape[0], 1), F32)}


def encode(rows: Rows, _importance: Rows | None) -> dict[str, Packed]:
    """float32[n, columns] -> codes uint8[n, columns] (the bytes of int8) and scales uint8[n, 4] (of float32)."""
    largest = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    scale = np.where(largest == 0, np.float32(1), largest).astype("<f4")
    codes = np.rint(rows / scale).astype(np.int8)
    return {"": codes.view(np.uint8), "_scale": scale.view(np.uint8)}


def decode(found: dict[str, Packed]) -> Rows:
    """The inverse: float32[n, columns]."""
    scale = np.ascontiguousarray(found["_scale"]).view("<f4")
    return np.ascontiguousarray(found[""]).view(np.int8).astype(np.float32) * scale


SCHEME = Scheme("int8-row", stored, encode, decode)
