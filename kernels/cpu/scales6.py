"""One scale and one min of the twelve bytes of reference/scales6.py, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit


@jit
def unpack(row: NDArray[np.uint8], j: int) -> tuple[int, int]:
    """The scale and the min of block `j`, of a super-block whose bytes 4 to 15 hold them."""
    if j < 4:
        return row[4 + j] & 63, row[8 + j] & 63
    return (row[8 + j] & 15) | (row[j] >> 6) << 4, row[8 + j] >> 4 | (row[4 + j] >> 6) << 4
