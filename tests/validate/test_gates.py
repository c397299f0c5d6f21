from __future__ import annotations

import math

import pytest
from smelt.validate.bootstrap import Interval
from smelt.validate.drift import Divergence, Drift, TargetShift
from smelt.validate.gates import (
    SAME_DTYPE,
    TABLE,
    TENSOR_ERROR,
    Limits,
    default_limits,
    drift_gates,
    tensor_limit,
    tokenizer_gate,
)
from smelt.validate.weights import TensorDrift

BILLION = 1_000_000_000


@pytest.mark.parametrize(
    ("bits", "parameters", "expected"),
    [
        (8.5, 7 * BILLION, Limits(0.002, 0.003, 0.97)),
        (8.0, 70 * BILLION, Limits(0.002, 0.003, 0.97)),
        (6.56, 7 * BILLION, Limits(0.005, 0.01, 0.95)),
        (5.5, 7 * BILLION, Limits(0.01, 0.02, 0.93)),
        (4.5, 7 * BILLION, Limits(0.03, 0.05, 0.90)),
        (4.5, 30 * BILLION, Limits(0.015, 0.03, 0.92)),
        (3.4, 70 * BILLION, Limits(0.12, 0.15, 0.85)),
        (2.6, 7 * BILLION, Limits(0.30, 0.5, 0.70)),
    ],
)
def test_the_table_asks_for_what_the_bits_allow(bits: float, parameters: int, expected: Limits) -> None:
    assert default_limits(bits, parameters, same_dtype=False) == expected


def test_a_conversion_at_the_same_dtype_must_change_nothing() -> None:
    assert default_limits(4.5, BILLION, same_dtype=True) == SAME_DTYPE == Limits(max_kld=1e-6)


def test_fewer_bits_never_have_stricter_limits() -> None:
    plain = [limits for _, size, limits in TABLE if size == 0]
    assert [limits.max_kld for limits in plain] == sorted(limits.max_kld or 0 for limits in plain)
    assert [limit for _, limit in TENSOR_ERROR] == sorted(limit for _, limit in TENSOR_ERROR)
    assert all(limit < 1 for _, limit in TENSOR_ERROR)  # a tensor of zeros has 1


def test_named_limits_replace_just_their_own() -> None:
    limits = Limits(0.03, 0.05, 0.9).overridden_by(Limits(max_kld=0.02))
    assert limits == Limits(0.03, 0.02, 0.9)


def a_drift(change: Interval, kld: Interval, top1: Interval) -> Drift:
    return Drift(7.0, change, Divergence(kld, 0, 0, 0, 0, 0, 0), top1, TargetShift(0, 0, 0, 0))


def test_the_whole_interval_must_lie_within_the_limits() -> None:
    inside = a_drift(Interval(0.01, 0.0, 0.02), Interval(0.03, 0.02, 0.04), Interval(0.95, 0.92, 0.97))
    assert [gate.passed for gate in drift_gates(inside, Limits(0.03, 0.05, 0.9))] == [True, True, True]
    across = a_drift(Interval(0.01, 0.0, 0.04), Interval(0.03, 0.02, 0.06), Interval(0.95, 0.88, 0.97))
    gates = drift_gates(across, Limits(0.03, 0.05, 0.9))
    assert [gate.name for gate in gates] == ["perplexity", "kld", "top1"]
    assert [gate.passed for gate in gates] == [False, False, False]
    assert gates[0].value == pytest.approx(math.exp(0.04) - 1)
    assert (gates[1].value, gates[2].value) == (0.06, 0.88)


def test_what_has_no_limit_is_not_judged() -> None:
    drift = a_drift(Interval(9, 9, 9), Interval(0, 0, 0), Interval(0, 0, 0))
    assert [gate.name for gate in drift_gates(drift, SAME_DTYPE)] == ["kld"]


def test_a_tensor_is_judged_by_its_own_type() -> None:
    assert tensor_limit(TensorDrift("t", "Q4_K", 4.5, same_dtype=False)) == 0.35
    assert tensor_limit(TensorDrift("t", "F32", 32, same_dtype=False)) == 0.02
    assert tensor_limit(TensorDrift("t", "F32", 32, same_dtype=True)) == 1e-6


def test_token_ids_that_end_early_are_different() -> None:
    gate = tokenizer_gate([1, 5, 6], [1, 5])
    assert not gate.passed
    assert gate.reason == "token 2 of the text is the end, the reference's is 6"
