"""TQ1_0, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import TQ1_0 as DTYPE
from ..reference.checks import refuse_non_finite, refuse_scale
from ..reference.tq1_0 import CODES, RUNS
from ..scheme import Packed, Rows
from .half import widen_half
from .jit import jit
from .ternary import encode_trits
from .tile import SOUND, VALUE_REFUSED, Bits, Floats

__all__ = ["DTYPE", "decode", "encode"]

POWERS = np.array([81, 27, 9, 3, 1], np.int32)  # of the trits in a byte, the first the most significant
LIFTS = np.array([1, 3, 9, 27, 81], np.int32)  # the other way: what brings a trit to the top

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 54] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    answer = _encode(blocks, blocks.view(np.uint32), packed.reshape(-1, DTYPE.nbytes))
    if answer == VALUE_REFUSED:
        refuse_non_finite(rows)
    elif answer != SOUND:
        refuse_scale(answer, columns, DTYPE.block)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 54] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    trits = np.empty(blocks.shape, np.uint8)
    answer = encode_trits(blocks, bits, trits, packed[:, CODES:])
    for n in range(packed.shape[0]):
        start = 0
        for width, depth, first in RUNS:
            for i in range(width):
                number = np.int32(0)
                for k in range(depth):
                    number += np.int32(trits[n, first + k * width + i]) * POWERS[k]
                packed[n, start + i] = np.uint8((number * 256 + 242) // 243)
            start += width
    return answer


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, CODES]) | np.uint32(packed[n, CODES + 1]) << np.uint32(8))
        start = 0
        for width, depth, first in RUNS:
            for k in range(depth):
                for i in range(width):
                    fraction = np.int32(packed[n, start + i]) * LIFTS[k] & 255
                    trit = np.int32(fraction * 3 >> 8) - np.int32(1)
                    blocks[n, first + k * width + i] = d * np.float32(trit)
            start += width
