"""TQ1_0: 256 ternary weights share one fp16 scale, five of them in a byte.

    super-block = | 48 bytes of 5 trits | 4 bytes of 4 trits | d: fp16 |         54 bytes for 256 weights, 1.6875 bits each
    the 52 bytes are three runs; in a run of `width`, byte l holds the trits first + l + width * k for k = 0, 1, ...
      width 32, 5 trits, first 0         width 16, 5 trits, first 160         width 4, 4 trits, first 240
    a byte is a fraction of 256: its trits, most significant first, are the digits of  number / 243 = 0.t0 t1 t2 t3 t4 base 3,
      byte = ceil(number * 256 / 243),   t[k] = (byte * 3^k mod 256) * 3 / 256
    weight[i] = d * (trit[i] - 1)

The scale and the trits: ternary.py. Importance changes nothing. Source: ggml, quantize_row_tq1_0_ref.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import TQ1_0 as DTYPE
from ..scheme import Packed, Rows
from .search import bytes_half, half_bytes
from .ternary import trits

__all__ = ["DTYPE", "RUNS", "decode", "encode"]

RUNS = ((32, 5, 0), (16, 5, 160), (4, 4, 240))  # width, trits in a byte, first weight
CODES = 52


def encode(rows: Rows, importance: Rows | None = None) -> Packed:  # noqa: ARG001
    """[n, columns] float32 -> [n, columns / 256 * 54] uint8; NonFiniteError, ScaleOverflowError."""
    n, columns = rows.shape
    row_width = DTYPE.row_nbytes(columns)
    d, trit = trits(rows, DTYPE.block)
    runs = []
    for width, depth, first in RUNS:
        digits = trit[:, first : first + width * depth].reshape(-1, depth, width).astype(np.uint16)
        number = np.zeros((len(trit), width), np.uint16)
        for k in range(depth):
            number += digits[:, k] * np.uint16(3 ** (4 - k))
        runs.append(((number * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
    return np.concatenate([*runs, half_bytes(d)], axis=1).reshape(n, row_width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 54] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    runs, start = [], 0
    for width, depth, _first in RUNS:
        powers = np.array([3**k for k in range(depth)], np.uint8)[:, None]
        fraction = blocks[:, None, start : start + width] * powers
        runs.append((fraction.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).reshape(-1, width * depth))
        start += width
    values = np.concatenate(runs, axis=1).astype(np.float32) - np.float32(1)
    weights: Rows = bytes_half(blocks[:, CODES:])[:, None] * values
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)
