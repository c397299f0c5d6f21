"""Row ranges through every layout."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smelt.convert.layouts import halves_to_pairs, join_columns, join_rows, pairs_to_halves
from smelt.convert.model import LazyTensor
from smelt.dtypes import F16, F32
from smelt.errors import ModelError


def lazy(matrix: np.ndarray, name: str = "w") -> LazyTensor:
    raw = np.ascontiguousarray(matrix, np.float32).reshape(-1, matrix.shape[-1]).view(np.uint8)
    return LazyTensor(name, matrix.shape, F32, lambda start, stop: raw[start:stop].copy())


def matrix(rows: int, columns: int) -> np.ndarray:
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def test_pairs_become_halves_as_metas_formula_says() -> None:
    heads, head_dim, columns = 3, 6, 2
    source = matrix(heads * head_dim, columns)
    found = pairs_to_halves(lazy(source), heads).load_float32()
    for h in range(heads):
        for j in range(head_dim // 2):
            for t in range(2):
                new, old = h * head_dim + t * head_dim // 2 + j, h * head_dim + 2 * j + t
                assert (found[new] == source[old]).all()


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_range_of_a_permuted_tensor_is_the_range_of_the_whole(
    heads: int, half: int, columns: int, data: st.DataObject
) -> None:
    rows = heads * 2 * half
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    source = lazy(matrix(rows, columns))
    there = pairs_to_halves(source, heads)
    assert (there.read(start, stop) == there.read(0, rows)[start:stop]).all()
    assert (halves_to_pairs(there, heads).read(start, stop) == source.read(start, stop)).all()


def test_the_permutation_is_not_its_own_inverse() -> None:
    source = lazy(matrix(8, 1))
    twice = pairs_to_halves(pairs_to_halves(source, 1), 1)
    assert (twice.load_float32() != source.load_float32()).any()


def test_rejects_heads_that_do_not_divide_the_rows() -> None:
    with pytest.raises(ModelError, match="9 rows are not 2 heads"):
        pairs_to_halves(lazy(matrix(9, 2)), 2)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_joined_rows_read_any_range_across_shards(heights: list[int], columns: int, data: st.DataObject) -> None:
    whole = matrix(sum(heights), columns)
    edges = np.cumsum([0, *heights])
    joined = join_rows("w", [lazy(whole[a:b]) for a, b in pairwise(edges)])
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    assert joined.shape == whole.shape
    assert (joined.read_float32(start, stop) == whole[start:stop]).all()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_joined_columns_read_any_range_across_shards(widths: list[int], rows: int, data: st.DataObject) -> None:
    whole = matrix(rows, sum(widths))
    edges = np.cumsum([0, *widths])
    joined = join_columns("w", [lazy(whole[:, a:b]) for a, b in pairwise(edges)])
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    assert (joined.read_float32(start, stop) == whole[start:stop]).all()


def test_vectors_join_end_to_end() -> None:
    joined = join_rows("b", [lazy(np.arange(3.0)), lazy(np.arange(2.0))])
    assert joined.load_float32().tolist() == [0, 1, 2, 0, 1]


def test_rejects_shards_that_disagree() -> None:
    other = LazyTensor("w", (2, 3), F16, lambda start, stop: np.zeros((stop - start, 6), np.uint8))
    with pytest.raises(ModelError, match="shards disagree"):
        join_rows("w", [lazy(matrix(2, 3)), other])
    with pytest.raises(ModelError, match="shards disagree"):
        join_columns("w", [lazy(matrix(2, 3)), lazy(matrix(3, 3))])
