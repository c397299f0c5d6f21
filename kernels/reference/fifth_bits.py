"""32 codes of 5 bits in 20 bytes, as Q5_0 and Q5_1 store them.

    | 4 bytes: bit i of the little-endian word is code i's fifth bit | 16 bytes: nibbles of codes i (low) and i + 16 (high) |

Source: ggml, block_q5_0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack(q: Bytes) -> Bytes:
    """uint8[n, 32] below 32 -> uint8[n, 20]."""
    high = np.packbits(q >> np.uint8(4), axis=1, bitorder="little")
    packed: Bytes = np.concatenate([high, q[:, :16] & np.uint8(15) | q[:, 16:] << np.uint8(4)], axis=1)
    return packed


def unpack(packed: Bytes) -> Bytes:
    """uint8[n, 20] -> uint8[n, 32]."""
    high = np.unpackbits(np.ascontiguousarray(packed[:, :4]), axis=1, bitorder="little")
    nibbles = np.concatenate([packed[:, 4:] & np.uint8(15), packed[:, 4:] >> np.uint8(4)], axis=1)
    codes: Bytes = nibbles | high << np.uint8(4)
    return codes
