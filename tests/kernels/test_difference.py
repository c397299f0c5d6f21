from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from smelt.dtypes import BLOCK, DTYPES, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0
from smelt.kernels.difference import Difference, share
from smelt.kernels.scheme import can_encode, kernel

Rows = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def difference(reference: Rows, decoded: Rows, name: str) -> Difference:
    found = Difference()
    found.add(reference, decoded, DTYPES[name])
    return found


def coded(rows: Rows, name: str) -> Rows:
    scheme = kernel(DTYPES[name])
    return scheme.decode(scheme.encode(rows, None))  # type: ignore[no-any-return]


@pytest.fixture
def rows() -> Rows:
    return np.random.default_rng(0).normal(size=(32, 512)).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 7, 64, 65, 512])
def test_sums_equal_numpys_whatever_the_width(rows: Rows, columns: int) -> None:
    a = rows[:, :columns]
    b = a + np.random.default_rng(1).normal(size=a.shape).astype(np.float32) / 10
    found = difference(a, b, "F32")
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert found.relative_error == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-12)
    assert found.cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-12)
    assert found.largest == np.abs(y - x).max()


def test_several_slabs_are_the_whole(rows: Rows) -> None:
    b = coded(rows, "Q4_0")
    whole, parts = difference(rows, b, "Q4_0"), Difference()
    for start, stop in pairwise((0, 5, 6, 32)):
        parts.add(rows[start:stop], b[start:stop], Q4_0)
    assert (parts.n_clipped, parts.largest) == (whole.n_clipped, whole.largest)
    assert parts.relative_error == pytest.approx(whole.relative_error, rel=1e-12)


def clipped_by_sorting(a: Rows, b: Rows, run: int) -> int:
    """The definition, block by block, for a code of even steps."""
    count = 0
    for x, y in zip(a.reshape(-1, run), b.reshape(-1, run), strict=True):
        values = np.unique(y)
        if len(values) > 1:
            half, grant = np.diff(values).min() / 2, np.abs(values[[0, -1]]) / 2048
            count += int(((x < values[0] - grant[0] - half) | (x > values[-1] + grant[1] + half)).sum())
    return count


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0", "IQ2_XS"])
def test_clipped_weights_are_those_of_the_definition(rows: Rows, name: str) -> None:
    b = coded(rows, name)
    assert difference(rows, b, name).n_clipped == clipped_by_sorting(rows, b, share(DTYPES[name]))


def test_rounding_clips_nothing_and_a_range_that_ends_early_clips_what_is_beyond(rows: Rows) -> None:
    b = coded(rows, "Q8_0")
    assert difference(rows, b, "Q8_0").n_clipped == 0
    narrow = np.clip(rows, -1.0, 1.0)
    found = difference(rows, coded(narrow, "Q8_0"), "Q8_0")
    assert found.n_clipped == pytest.approx((np.abs(rows) > 1.004).sum(), rel=0.01)


def test_q4_0_clips_what_lies_opposite_its_largest_weight(rows: Rows) -> None:
    blocks = rows.reshape(-1, 32)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
    # Codes are -8 .. 7 and the largest weight takes -8: beyond 7.5 steps on the other side there is no code.
    beyond = int((blocks / largest * -8 > 7.5 * (1 + 1e-3)).sum())
    assert difference(rows, coded(rows, "Q4_0"), "Q4_0").n_clipped == pytest.approx(beyond, abs=3)
    assert beyond > 10


@pytest.mark.parametrize("name", [dtype.name for dtype in BLOCK if can_encode(dtype)])
def test_honest_codes_of_eight_to_four_bits_clip_few_weights(rows: Rows, name: str) -> None:
    found = difference(rows, coded(rows, name), name)
    allowed = 0.01 if DTYPES[name].bits_per_weight >= 4 else 0.2
    assert found.n_clipped <= allowed * rows.size


def test_blocks_of_zeros_count_only_where_the_reference_has_something(rows: Rows) -> None:
    a, b = rows.copy(), coded(rows, "Q4_K")
    b[0, :64] = 0
    a[1, :32] = b[1, :32] = 0
    assert difference(a, b, "Q4_K").n_zero_blocks == 2
    assert difference(a, b, "F32").n_zero_blocks == 0


def test_values_that_are_not_finite_are_seen(rows: Rows) -> None:
    for value in (math.nan, math.inf, -math.inf):
        for place in ((0, 0), (31, 511), (3, 100)):
            b = rows.copy()
            b[place] = value
            assert not difference(rows, b, "Q8_0").is_finite
            assert not difference(rows[:, :509], b[:, :509], "F16").is_finite or place[1] > 508
    assert difference(rows, rows, "Q8_0").is_finite


def test_the_weights_that_share_a_scale_divide_a_block() -> None:
    assert (share(F16), share(Q8_0), share(Q4_K), share(Q6_K), share(F32)) == (0, 32, 32, 16, 0)
    assert all(dtype.block % share(dtype) == 0 for dtype in BLOCK)
