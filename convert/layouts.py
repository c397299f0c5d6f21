"""Rows and columns rearranged while they are read: every layout maps a range of rows to ranges of rows.

    Meta, GGUF (adjacent pairs)            canonical (halves)
    row  h*hd + 2j + t            <->      row  h*hd + t*hd/2 + j          h: head, j: pair, t: 0 or 1

The permutation stays inside one head, so any row range reads whole heads and no more. It moves whole rows, so it works on
packed rows of any dtype. It is not its own inverse. Source: transformers, convert_llama_weights_to_hf.py (permute), checked
by the logits of an independent forward in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from ..errors import ModelError
from ..formats.checkpoint import Bytes
from .model import LazyTensor


def pairs_to_halves(tensor: LazyTensor, n_heads: int) -> LazyTensor:
    """Meta or GGUF rotary rows -> canonical. ModelError where the rows are not whole heads of an even size."""
    return _within_heads(tensor, n_heads, to_halves=True)


def halves_to_pairs(tensor: LazyTensor, n_heads: int) -> LazyTensor:
    """Canonical rotary rows -> Meta or GGUF: the inverse of `pairs_to_halves`."""
    return _within_heads(tensor, n_heads, to_halves=False)


def _within_heads(tensor: LazyTensor, n_heads: int, *, to_halves: bool) -> LazyTensor:
    rows = tensor.shape[0]
    if n_heads <= 0 or rows % n_heads or rows // n_heads % 2:
        raise ModelError(f"{tensor.name}: {rows} rows are not {n_heads} heads of an even size")
    head_dim = rows // n_heads
    split = (head_dim // 2, 2) if to_halves else (2, head_dim // 2)

    def read(start_row: int, stop_row: int) -> Bytes:
        first = start_row // head_dim * head_dim
        last = -(-stop_row // head_dim) * head_dim
        raw = tensor.read(first, last)
        width = raw.shape[1]
        heads = raw.reshape(-1, *split, width).swapaxes(1, 2).reshape(-1, width)
        return np.ascontiguousarray(heads[start_row - first : stop_row - first])

    return replace(tensor, read=read)


def join_rows(name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """Concatenate along the first dimension; ModelError where dtypes or the other dimensions differ."""
    _check_alike(name, parts, dimension=0)
    if len(parts) == 1:
        return replace(parts[0], name=name)
    if len(parts[0].shape) == 1:
        return _join_matrix_columns(name, parts, (sum(part.shape[0] for part in parts),))
    ends = list(accumulate(part.matrix_shape[0] for part in parts))
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])

    def read(start_row: int, stop_row: int) -> Bytes:
        pieces = []
        for part, end in zip(parts, ends, strict=True):
            begin = end - part.matrix_shape[0]
            low, high = max(start_row, begin), min(stop_row, end)
            if low < high:
                pieces.append(part.read(low - begin, high - begin))
        if not pieces:
            return parts[0].read(0, 0)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return LazyTensor(name, shape, parts[0].dtype, read)


def join_columns(name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """Concatenate matrices along the last dimension; ModelError where dtypes or the other dimensions differ."""
    _check_alike(name, parts, dimension=-1)
    if len(parts) == 1:
        return replace(parts[0], name=name)
    shape = (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts))
    return _join_matrix_columns(name, parts, shape)


def _join_matrix_columns(name: str, parts: Sequence[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    widths = [part.dtype.row_nbytes(part.matrix_shape[1]) for part in parts]
    edges = [0, *accumulate(widths)]

    def read(start_row: int, stop_row: int) -> Bytes:
        out = np.empty((stop_row - start_row, edges[-1]), np.uint8)
        for part, low, high in zip(parts, edges, edges[1:], strict=False):
            out[:, low:high] = part.read(start_row, stop_row)
        return out

    return LazyTensor(name, shape, parts[0].dtype, read)


def _check_alike(name: str, parts: Sequence[LazyTensor], dimension: int) -> None:
    first = parts[0]
    for part in parts[1:]:
        mine, theirs = list(part.shape), list(first.shape)
        if mine and theirs and len(mine) == len(theirs):
            mine[dimension] = theirs[dimension] = 0
        if part.dtype != first.dtype or mine != theirs:
            raise ModelError(
                f"{name}: shards disagree: {first.dtype} {list(first.shape)} and {part.dtype} {list(part.shape)}"
            )
