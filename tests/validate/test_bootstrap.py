from __future__ import annotations

import numpy as np
import pytest
from smelt.validate.bootstrap import Interval, interval


def test_equal_chunks_have_an_interval_of_no_width() -> None:
    assert interval([np.zeros(5)] * 4) == Interval(0.0, 0.0, 0.0)


def test_one_chunk_has_no_interval() -> None:
    found = interval([np.array([1.0, 2.0, 6.0])])
    assert found == Interval(3.0, None, None)
    assert (found.lower, found.upper) == (3.0, 3.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    chunks = list(np.random.default_rng(0).normal(size=(12, 30)))
    assert interval(chunks, seed=3) == interval(chunks, seed=3) != interval(chunks, seed=4)


def test_the_mean_counts_tokens_and_not_chunks() -> None:
    assert interval([np.array([0.0]), np.array([3.0, 3.0])]).mean == pytest.approx(2.0)


def test_about_95_of_100_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        chunks = list(generator.normal(size=(24, 1)) + 0.1 * generator.normal(size=(24, 8)))
        found = interval(chunks, resamples=600)
        held += found.lower <= 0 <= found.upper
    assert 0.90 <= held / 400 <= 0.985


def test_tokens_that_move_together_within_a_chunk_widen_the_interval() -> None:
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(24, 1)) * np.ones((24, 50))
    apart = generator.normal(size=(24, 50))
    widths = [found.upper - found.lower for found in (interval(list(shared)), interval(list(apart)))]
    assert widths[0] > 4 * widths[1]


def test_a_skewed_sample_gets_a_skewed_interval() -> None:
    values = np.random.default_rng(0).exponential(size=(20, 1))
    found = interval(list(values))
    assert found.upper - found.mean > 1.2 * (found.mean - found.lower)
