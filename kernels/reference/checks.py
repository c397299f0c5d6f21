"""What no format can hold is refused, with its row and column: NaN, infinity, a value or scale beyond fp16.

    fp16's largest number is 65504; rounding to nearest even turns everything from 65520 on into infinity

Rows and columns count from 0 inside the slab that was given; callers add the tensor's name and the slab's first row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError, NonFiniteError, ScaleOverflowError
from .search import HALF_OVERFLOW

Rows = NDArray[np.float32]

SEARCH_LIMIT = np.float32(
    2.0**29
)  # above what any searched block can hold (q6_k: 65504 * 128 * 32), below fp32 trouble


def refuse_non_finite(rows: Rows) -> None:
    """NonFiniteError for the first NaN or infinity of `rows`, else nothing. Costs two passes of a maximum."""
    if rows.size == 0 or (np.isfinite(rows.max()) and np.isfinite(rows.min())):
        return
    row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
    kind = "NaN" if np.isnan(rows[row, column]) else "infinity"
    raise NonFiniteError(f"{kind} at row {row}, column {column}", row, column)


def refuse_overflow(rows: Rows, limit: np.float32 = HALF_OVERFLOW) -> None:
    """ScaleOverflowError for the first weight of `rows` at or beyond `limit` in magnitude."""
    if rows.size == 0 or max(rows.max(), -rows.min()) < limit:
        return
    row, column = (int(i) for i in np.argwhere(np.abs(rows) >= limit)[0])
    value = rows[row, column]
    raise ScaleOverflowError(f"{value:g} at row {row}, column {column} is beyond the format's range", row, column)


def refuse_values(rows: Rows, limit: np.float32) -> None:
    """Both refusals, what is not finite first."""
    refuse_non_finite(rows)
    refuse_overflow(rows, limit)


def refuse_scale(block: int, columns: int, block_width: int) -> None:
    """ScaleOverflowError for the scale of `block`, counted over the whole slab of rows of `columns`."""
    row, column = divmod(block * block_width, columns)
    raise ScaleOverflowError(
        f"the block scale at row {row}, column {column} is beyond fp16's largest number, 65504", row, column
    )


def refuse_scales(scales: Rows, columns: int, block_width: int) -> None:
    """ScaleOverflowError for the first of `scales` (float32, one a block, in order) that fp16 cannot hold."""
    bad = np.flatnonzero(np.abs(scales.reshape(-1)) >= HALF_OVERFLOW)
    if bad.size:
        refuse_scale(int(bad[0]), columns, block_width)


def relative_importance(importance: Rows, columns: int) -> Rows:
    """Importance over its mean: float32[columns]; InputError where it is negative, not finite or of the wrong length.

    All zero (an expert that never ran) makes every column alike.
    """
    if importance.shape != (columns,):
        raise InputError(
            f"importance has shape {list(importance.shape)}, wanted one number for each of {columns} columns"
        )
    bad = np.flatnonzero(~np.isfinite(importance) | (importance < 0))
    if bad.size:
        column = int(bad[0])
        raise InputError(f"importance at column {column} is {importance[column]}, wanted a finite number of at least 0")
    mean = importance.astype(np.float64).mean() if columns else 0.0
    if mean == 0:
        return np.ones(columns, np.float32)
    return (importance / mean).astype(np.float32)
