"""Where the rows of one logical weight go: whole into one file, or in parts into several.

    Place(rows 0..n, bytes 0..w)      a whole tensor: safetensors, GGUF, a norm in a .pth
    Place(rows a..b, bytes 0..w)      a column-parallel shard holds some rows
    Place(rows 0..n, bytes a..b)      a row-parallel shard holds some columns of every row

A slab of rows is cut for each place; places of one weight may overlap, as where shards hold copies of a norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..formats.checkpoint import Bytes


@dataclass(frozen=True)
class Place:
    """Rows [start_row, stop_row), of each the bytes [first_byte, first_byte + row_nbytes), at byte `offset` of `file`."""

    file: str
    offset: int
    row_nbytes: int
    start_row: int
    stop_row: int
    first_byte: int = 0

    def cut(self, first_row: int, rows: Bytes) -> tuple[int, Bytes] | None:
        """Of whole rows uint8[n, width] from `first_row` on, what goes here and its offset in the file; None: nothing."""
        start, stop = max(self.start_row, first_row), min(self.stop_row, first_row + len(rows))
        if start >= stop:
            return None
        part = rows[start - first_row : stop - first_row, self.first_byte : self.first_byte + self.row_nbytes]
        return self.offset + (start - self.start_row) * self.row_nbytes, np.ascontiguousarray(part)
