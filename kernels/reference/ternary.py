"""What TQ1_0 and TQ2_0 share: 256 weights are -1, 0 or 1 under one fp16 scale, the largest magnitude among them.

    d = max|x|,  trit[i] = round(x[i] / d) + 1, halves away from zero, by the float32 d before it becomes fp16

Meant for models trained with such weights; any other loses nearly everything. Source: ggml, quantize_row_tq1_0_ref.
"""

from __future__ import annotations

import numpy as np

from ..scheme import Packed
from .checks import refuse_non_finite, refuse_scales
from .q8_0 import FP32_MIN
from .search import Floats

HALF, ONE, ZERO = np.float32(0.5), np.float32(1), np.float32(0)


def trits(rows: Floats, width: int) -> tuple[Floats, Packed]:
    """[n, columns] -> d float32[blocks], trits 0..2 uint8[blocks, width]; NonFiniteError, ScaleOverflowError."""
    refuse_non_finite(rows)
    blocks = rows.reshape(-1, width)
    d = np.abs(blocks).max(axis=1)
    refuse_scales(d, rows.shape[1], width)
    usable = d >= FP32_MIN
    inverse = np.where(usable, ONE / np.where(usable, d, ONE), ZERO)
    scaled = blocks * inverse[:, None]
    trit: Packed = np.uint8(1) + (scaled >= HALF).astype(np.uint8) - (scaled <= -HALF).astype(np.uint8)
    return d, trit
