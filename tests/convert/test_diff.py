"""The same weights? Bit by bit, or up to a relative error."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import smelt
from meta_checkpoints import write_meta
from smelt.convert.diff import relative_error
from smelt.convert.model import LazyTensor
from smelt.convert.options import OpenOptions
from smelt.dtypes import F32


def lazy(values: np.ndarray) -> LazyTensor:
    raw = np.ascontiguousarray(values, np.float32).view(np.uint8)
    return LazyTensor("t", values.shape, F32, lambda start, stop: raw[start:stop])


def test_a_lossy_pair_is_equal_up_to_its_tolerance(tmp_path: Path) -> None:
    write_meta(tmp_path / "source", dim=256, multiple_of=256)
    options = OpenOptions(context_length=64)
    smelt.quantize(tmp_path / "source", tmp_path / "q.gguf", scheme="q8_0", options=options)
    assert not smelt.diff(tmp_path / "source", tmp_path / "q.gguf").equal
    assert smelt.diff(tmp_path / "source", tmp_path / "q.gguf", tolerance=0.02).equal
    strict = smelt.diff(tmp_path / "source", tmp_path / "q.gguf", tolerance=0.001)
    assert not strict.equal
    assert all(0.001 < found.relative < 0.02 for found in strict.different)
    assert strict.document()["different"][0]["relative"] == strict.different[0].relative


def test_the_relative_error_is_of_euclidean_norms() -> None:
    a, b = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [0.3, 0.4]])
    assert relative_error(lazy(a), lazy(b)) == pytest.approx(0.1)
    assert relative_error(lazy(0 * a), lazy(b)) == math.inf


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_tolerance_excuses_what_is_not_finite(value: float) -> None:
    a = np.array([[3.0, 4.0]])
    assert relative_error(lazy(a), lazy(np.array([[3.0, value]]))) == math.inf
    assert relative_error(lazy(np.array([[3.0, value]])), lazy(a)) == math.inf
