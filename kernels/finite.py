"""Is every stored number finite? One pass over the bits, no widening.

An IEEE float is NaN or infinite exactly where all its exponent bits are set. Shifting the sign out makes that one unsigned
comparison: bits << 1 >= exponent mask << 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import DType
from .scheme import Packed

_WORDS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F80 << 16),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def count_nonfinite(dtype: DType, packed: Packed) -> int:
    """NaN and infinite elements of uint8[n, row_nbytes] at a plain float dtype; 0 for every other dtype."""
    if dtype.name not in _WORDS or packed.size == 0:
        return 0
    word, mask = _WORDS[dtype.name]
    shifted = np.left_shift(packed.view(word), 1)
    limit = mask << 1 & (1 << 8 * dtype.nbytes) - 1
    return 0 if int(shifted.max()) < limit else int(np.count_nonzero(shifted >= limit))
