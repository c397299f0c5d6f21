from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from smelt.errors import FormatError
from smelt.validate.plain import from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    number: float
    name: str | None


@dataclass(frozen=True)
class Outer:
    count: int
    right: bool
    inners: tuple[Inner, ...]
    by_index: dict[int, list[str]]
    pair: tuple[int, float]
    values: NDArray[np.float64]
    maybe: NDArray[np.int64] | None = None


def through_json(kind: Any, value: Any) -> Any:
    return from_plain(kind, json.loads(json.dumps(to_plain(value))))


@given(st.floats(allow_nan=True), st.none() | st.text())
@settings(max_examples=50)
def test_every_float_and_text_comes_back_exactly(number: float, name: str | None) -> None:
    found = through_json(Inner, Inner(number, name))
    assert found.name == name
    assert math.isnan(found.number) if math.isnan(number) else found.number == number
    assert math.copysign(1, found.number) == math.copysign(1, number) or math.isnan(number)


def test_nested_values_come_back_as_what_they_were() -> None:
    values = np.array([[0.1, -0.0], [np.nan, np.inf]])
    outer = Outer(3, True, (Inner(1e-300, None),), {7: ["a"], -1: []}, (2, 0.5), values, np.arange(3))
    found = through_json(Outer, outer)
    assert found.values.tobytes() == values.tobytes()
    assert found.values.dtype == np.float64
    assert found.maybe.tolist() == [0, 1, 2]
    assert (found.count, found.right, found.inners, found.by_index, found.pair) == (
        outer.count,
        outer.right,
        outer.inners,
        outer.by_index,
        outer.pair,
    )
    found.values[0, 0] = 1.0  # it owns its memory


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (int, True),
        (int, 1.0),
        (float, "1"),
        (str, None),
        (bool, 0),
        (list[int], {"0": 1}),
        (tuple[int, float], [1]),
        (dict[int, str], [[1]]),
        (Inner, {"number": 1.0}),
        (Inner, {"number": 1.0, "name": None, "more": 0}),
        (NDArray[np.float64], {"dtype": "<f8", "shape": [2], "base64": "AAAA"}),
        (NDArray[np.float64], {"dtype": "O", "shape": [1], "base64": "AAAAAAAAAAA="}),
        (NDArray[np.float64], [1.0]),
        (NDArray[np.float64], {"dtype": "<f8", "shape": [1], "base64": "!"}),
    ],
)
def test_anything_else_is_an_error(kind: Any, plain: Any) -> None:
    with pytest.raises(FormatError):
        from_plain(kind, plain)
