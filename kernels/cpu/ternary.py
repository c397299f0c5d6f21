"""What TQ1_0 and TQ2_0 share, compiled: the largest magnitude is the scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference.q8_0 import FP32_MIN
from ..reference.ternary import HALF
from .half import HALF_LIMIT, INFINITY, MAGNITUDE, narrow_half
from .jit import jit
from .tile import ONE, SOUND, VALUE_REFUSED, ZERO, Bits, Floats

Bytes = NDArray[np.uint8]


@jit
def encode_trits(blocks: Floats, bits: Bits, trits: Bytes, halves: Bytes) -> int:
    """trits[blocks, width] 0..2, halves[blocks, 2] the fp16 scales; answers as tile.py says."""
    overflowed = SOUND
    for n in range(blocks.shape[0]):
        largest = np.uint32(0)
        for i in range(blocks.shape[1]):
            largest = max(largest, np.uint32(bits[n, i] & MAGNITUDE))
        if largest >= INFINITY:
            return VALUE_REFUSED
        d = np.uint32(largest).view(np.float32)
        if d >= HALF_LIMIT and overflowed == SOUND:
            overflowed = n
        inverse = ONE / d if d >= FP32_MIN else ZERO
        half = narrow_half(d)
        halves[n, 0], halves[n, 1] = np.uint8(half & np.uint32(255)), np.uint8(half >> np.uint32(8))
        for i in range(blocks.shape[1]):
            scaled = blocks[n, i] * inverse
            trits[n, i] = np.uint8(np.int32(1) + np.int32(scaled >= HALF) - np.int32(scaled <= -HALF))
    return overflowed
