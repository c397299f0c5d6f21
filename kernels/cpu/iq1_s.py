"""IQ1_S, compiled; decoding is the reference's, whose time goes into looking points up."""

from __future__ import annotations

from ...dtypes import IQ1_S as DTYPE
from ..reference.iq1_s import BOOK, decode, pack
from ..scheme import Packed, Rows
from .codebook import search

__all__ = ["DTYPE", "decode", "encode"]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 50] uint8."""
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    return pack(search(BOOK, rows, importance)).reshape(n, width)
