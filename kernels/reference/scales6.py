"""Eight scales and eight mins of 6 bits in 12 bytes, as Q4_K and Q5_K store them. Source: ggml, get_scale_min_k4.

byte 0..3    scale[j] in bits 0-5, bits 4-5 of scale[j + 4] in bits 6-7
byte 4..7    min[j]   in bits 0-5, bits 4-5 of min[j + 4]   in bits 6-7
byte 8..11   bits 0-3 of scale[j + 4] in the low nibble, of min[j + 4] in the high nibble        j = 0..3
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack(scales: Bytes, mins: Bytes) -> Bytes:
    """uint8[n, 8] twice, each below 64 -> uint8[n, 12]."""
    low_scales, high_scales, low_mins, high_mins = scales[:, :4], scales[:, 4:], mins[:, :4], mins[:, 4:]
    return np.concatenate(
        [
            low_scales | (high_scales >> 4) << 6,
            low_mins | (high_mins >> 4) << 6,
            (high_scales & 15) | (high_mins & 15) << 4,
        ],
        axis=1,
    )


def unpack(packed: Bytes) -> tuple[Bytes, Bytes]:
    """uint8[n, 12] -> uint8[n, 8] scales and uint8[n, 8] mins."""
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([first & 63, (third & 15) | (first >> 6) << 4], axis=1)
    mins = np.concatenate([second & 63, (third >> 4) | (second >> 6) << 4], axis=1)
    return scales, mins
