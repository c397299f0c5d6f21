"""Rows and columns rearranged while they are read: every layout maps a range of rows to ranges of rows.

    Meta, GGUF (adjacent pairs)            canonical (halves)
    row  h*hd + 2j + t            <->      row  h*hd + t*hd/2 + j          h: head, j: pair, t: 0 or 1

    one stored tensor                      several canonical ones
    rows a*n .. (a+1)*n           <->      all n rows of the a-th

    GGUF attn_qkv of BLOOM                 canonical, for each head h its q, k and v
    row  t*n*hd + h*hd + j        <->      row  (3h + t)*hd + j            n heads, t: 0, 1, 2 for q, k, v

    GGUF norm of Gemma                     canonical
    weight + 1 in float32         <->      weight                          so that its clients need not add

The permutation stays inside one head, so any row range reads whole heads and no more. It moves whole rows, so it works on
packed rows of any dtype (of a bias it moves elements). It is not its own inverse. Source: transformers,
convert_llama_weights_to_hf.py (permute); llama.cpp, convert_hf_to_gguf.py; checked by logits in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import numpy as np

from ..dtypes import F32, Shape
from ..errors import ModelError
from ..formats.checkpoint import Bytes
from ..kernels.scheme import Rows, decode
from .model import Config, LazyTensor

Relaid = Callable[[LazyTensor, Config], LazyTensor]


@dataclass(frozen=True)
class Layout:
    """How a dialect lays out one tensor: two inverse functions of (tensor, config). Names and shapes stay.

    shifts  what is added to every value, in float32, on the way to the dialect; 0 where bytes only move
    """

    to_stored: Relaid
    to_canonical: Relaid
    shifts: float = 0.0


def rotary(heads: str) -> Layout:
    """Adjacent pairs in the dialect, halves in canonical; `heads` is the config key that counts the heads."""
    return Layout(
        lambda tensor, config: halves_to_pairs(tensor, int(config[heads])),
        lambda tensor, config: pairs_to_halves(tensor, int(config[heads])),
    )


def fused(heads: str) -> Layout:
    """All queries, all keys, all values in the dialect; in canonical one head after another, each with its own three."""
    return Layout(
        lambda tensor, config: transposed_blocks(tensor, int(config[heads]), 3),
        lambda tensor, config: transposed_blocks(tensor, 3, int(config[heads])),
    )


def transposed_blocks(tensor: LazyTensor, outer: int, inner: int) -> LazyTensor:
    """Blocks of equal height, numbered [outer, inner], in the order [inner, outer]: of a vector blocks of elements."""
    size = tensor.shape[0]
    if outer <= 0 or inner <= 0 or size % (outer * inner):
        raise ModelError(f"{tensor.name}: {size} rows are not {outer} times {inner} blocks")
    height = size // (outer * inner)

    def read_vector(start_row: int, stop_row: int) -> Bytes:
        raw = tensor.read(start_row, stop_row)
        blocks = raw.reshape(-1, outer, inner, height * tensor.dtype.nbytes).swapaxes(1, 2)
        return np.ascontiguousarray(blocks).reshape(raw.shape)

    if len(tensor.shape) == 1:
        return replace(tensor, read=read_vector)

    def read(start_row: int, stop_row: int) -> Bytes:
        pieces = []
        while start_row < stop_row:
            block, row = divmod(start_row, height)
            count = min(height - row, stop_row - start_row)
            first = (block % outer * inner + block // outer) * height + row
            pieces.append(tensor.read(first, first + count))
            start_row += count
        return np.concatenate(pieces) if pieces else tensor.read(0, 0)

    return replace(tensor, read=read)


def shifted(tensor: LazyTensor, by: float) -> LazyTensor:
    """Every value plus `by`, added and kept in float32."""

    def read(start_row: int, stop_row: int) -> Bytes:
        values: Rows = decode(tensor.dtype, tensor.read(start_row, stop_row)) + np.float32(by)
        return values.astype("<f4").view(np.uint8)

    return replace(tensor, dtype=F32, read=read)


PLUS_ONE = Layout(lambda tensor, _: shifted(tensor, 1.0), lambda tensor, _: shifted(tensor, -1.0), shifts=1.0)


def unrounded(stored: LazyTensor, kept: Rows, by: float) -> LazyTensor:
    """The values before `by` was added: `kept` where adding it gives what is stored, else stored - by. For vectors."""

    def read(start_row: int, stop_row: int) -> Bytes:
        values = decode(stored.dtype, stored.read(start_row, stop_row))
        before = kept.reshape(values.shape)
        known = before + np.float32(by) == values
        return np.where(known, before, values - np.float32(by)).astype("<f4").view(np.uint8)

    return replace(stored, dtype=F32, read=read)


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

    def read_vector(start_row: int, stop_row: int) -> Bytes:
        raw = tensor.read(start_row, stop_row)
        elements = raw.reshape(-1, *split, tensor.dtype.nbytes).swapaxes(1, 2)
        return np.ascontiguousarray(elements).reshape(raw.shape)

    if len(tensor.shape) == 1:
        return replace(tensor, read=read_vector)

    def read(start_row: int, stop_row: int) -> Bytes:
        first = start_row // head_dim * head_dim
        last = -(-stop_row // head_dim) * head_dim
        raw = tensor.read(first, last)
        width = raw.shape[1]
        heads = raw.reshape(-1, *split, width).swapaxes(1, 2).reshape(-1, width)
        return np.ascontiguousarray(heads[start_row - first : stop_row - first])

    return replace(tensor, read=read)


def part_of(tensor: LazyTensor, name: str, shape: Shape, first: int) -> LazyTensor:
    """The part of `tensor` that starts at its element `first` (whole rows; of a vector any) as one of `shape`."""
    if len(tensor.shape) == 1:
        low = tensor.dtype.row_nbytes(first)
        high = low + tensor.dtype.row_nbytes(prod(shape))
        return LazyTensor(
            name,
            shape,
            tensor.dtype,
            lambda start, stop: np.ascontiguousarray(tensor.read(start, stop)[:, low:high]),
        )
    skipped = first // tensor.shape[-1]
    return LazyTensor(name, shape, tensor.dtype, lambda start, stop: tensor.read(skipped + start, skipped + stop))


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
