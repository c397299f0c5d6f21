"""TQ2_0, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import TQ2_0 as DTYPE
from ..reference.checks import refuse_non_finite, refuse_scale
from ..scheme import Packed, Rows
from .half import widen_half
from .jit import jit
from .ternary import encode_trits
from .tile import SOUND, VALUE_REFUSED, Bits, Floats

__all__ = ["DTYPE", "decode", "encode"]

CODES, LANES = 64, 32

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 66] uint8."""
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
    """[n, columns / 256 * 66] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode(blocks: Floats, bits: Bits, packed: Bytes) -> int:
    trits = np.empty(blocks.shape, np.uint8)
    answer = encode_trits(blocks, bits, trits, packed[:, CODES:])
    for n in range(packed.shape[0]):
        for h in range(2):
            for i in range(LANES):
                at = 4 * h * LANES + i
                low = trits[n, at] | trits[n, at + LANES] << 2
                packed[n, h * LANES + i] = low | trits[n, at + 2 * LANES] << 4 | trits[n, at + 3 * LANES] << 6
    return answer


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        d = widen_half(np.uint32(packed[n, CODES]) | np.uint32(packed[n, CODES + 1]) << np.uint32(8))
        for h in range(2):
            for k in range(4):
                for i in range(LANES):
                    trit = np.int32(packed[n, h * LANES + i] >> (2 * k) & 3) - np.int32(1)
                    blocks[n, (4 * h + k) * LANES + i] = d * np.float32(trit)
