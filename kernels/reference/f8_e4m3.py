"""FP8 E4M3 as torch's float8_e4m3fn: one byte a weight, no infinity. Read only.

    byte    = | sign | eeee | mmm |
    weight  = (-1)^sign * 2^(e - 7) * (1 + m / 8)        e > 0
              (-1)^sign * 2^(-6) * (m / 8)               e = 0
    0x7f and 0xff are NaN; the largest number is 448

Source: Micikevicius et al., FP8 Formats for Deep Learning (arXiv 2209.05433); ml_dtypes, float8_e4m3fn.
"""

from __future__ import annotations

import numpy as np

from ...dtypes import DTYPES
from ..scheme import Packed, Rows

DTYPE = DTYPES["F8_E4M3"]

__all__ = ["DTYPE", "decode"]


def _table() -> Rows:
    """float32[256], what each byte means."""
    codes = np.arange(256)
    exponents, mantissas = codes >> 3 & 15, codes & 7
    values = np.where(exponents, np.ldexp(1 + mantissas / 8, exponents - 7), np.ldexp(mantissas / 8, -6))
    values[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes & 0x80, -values, values).astype(np.float32)


VALUES = _table()


def decode(packed: Packed) -> Rows:
    """[n, columns] uint8 -> [n, columns] float32, exactly."""
    return VALUES[packed]
