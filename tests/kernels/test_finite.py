"""Which bits are not a finite number: every 16-bit pattern, and the edges of the wider types."""

from __future__ import annotations

import numpy as np
import pytest
from smelt.dtypes import DTYPES
from smelt.kernels.finite import count_nonfinite

EVERY = np.arange(1 << 16, dtype=np.uint16)
VALUES = {"F16": EVERY.view(np.float16), "BF16": (EVERY.astype(np.uint32) << 16).view(np.float32)}


@pytest.mark.parametrize("name", VALUES)
def test_every_16_bit_pattern_is_judged_as_ieee_has_it(name: str) -> None:
    bad = ~np.isfinite(VALUES[name])
    packed = EVERY.view(np.uint8).reshape(-1, 2)
    assert count_nonfinite(DTYPES[name], packed) == np.count_nonzero(bad)
    assert count_nonfinite(DTYPES[name], packed[~bad]) == 0
    found = [count_nonfinite(DTYPES[name], one[None]) for one in packed[bad]]
    assert found == [1] * len(found)  # each alone: neither sign hides behind the other


@pytest.mark.parametrize(("name", "dtype"), [("F32", np.float32), ("F64", np.float64)])
def test_the_edges_of_the_wider_types(name: str, dtype: type[np.floating]) -> None:
    largest = float(np.finfo(dtype).max)
    for value, count in ((np.nan, 1), (-np.nan, 1), (np.inf, 1), (-np.inf, 1), (largest, 0), (-largest, 0), (-0.0, 0)):
        packed = np.array([[1, value, -2], [0, -1, 3]], dtype).view(np.uint8)
        assert count_nonfinite(DTYPES[name], packed) == count, value


def test_what_is_no_plain_float_or_empty_has_none() -> None:
    assert count_nonfinite(DTYPES["U8"], np.full((2, 8), 255, np.uint8)) == 0
    assert count_nonfinite(DTYPES["F16"], np.empty((0, 8), np.uint8)) == 0
