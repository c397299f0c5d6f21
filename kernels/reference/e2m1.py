"""E2M1, the 4-bit float of MXFP4 and NVFP4, doubled so that its values are integers.

    code = | sign: 1 | magnitude: 3 |      magnitudes 0 1 2 3 4 6 8 12; code 8 is a second zero, which is never written
    a run of 2 n weights is n bytes: byte i holds code[i] (low nibble) and code[i + n] (high nibble)

The nearest value wins, the smaller magnitude of two equally near: a magnitude's index is the number of middles that the
weight exceeds. Source: ggml, kvalues_mxfp4, and the OCP microscaling formats specification, version 1.0.
"""

from __future__ import annotations

import numpy as np

from ..scheme import Packed
from .search import ZERO, Floats

MAGNITUDES = (0, 1, 2, 3, 4, 6, 8, 12)
VALUES = tuple(np.float32(v) for v in (*MAGNITUDES, *(-m for m in MAGNITUDES)))
MIDDLES = tuple(np.float32(m) for m in (0.5, 1.5, 2.5, 3.5, 5, 7, 10))


def nearest(x: Floats, d: Floats) -> Packed:
    """[blocks, width] under steps [blocks] -> codes uint8[blocks, width]; all 0 where the step is 0."""
    magnitude = np.abs(x)
    index = np.zeros(x.shape, np.uint8)
    for middle in MIDDLES:
        index += (magnitude > (middle * d)[:, None]) & (d > ZERO)[:, None]
    negative = (x < ZERO) & (index > 0)
    codes: Packed = index | negative.astype(np.uint8) << np.uint8(3)
    return codes


def pack(codes: Packed) -> Packed:
    """[blocks, 2 n] -> [blocks, n]."""
    half = codes.shape[1] // 2
    packed: Packed = codes[:, :half] | codes[:, half:] << np.uint8(4)
    return packed


def unpack(packed: Packed) -> Floats:
    """[blocks, n] -> doubled values float32[blocks, 2 n]."""
    codes = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
    values: Floats = np.array(VALUES)[codes]
    return values
