from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from smelt.convert.tokenizer import Tokenizer
from smelt.errors import UsageError
from smelt.validate.bootstrap import Interval
from smelt.validate.drift import Divergence, Drift, Flips, Histogram, TargetShift
from smelt.validate.gates import (
    TENSOR_ERROR,
    config_gate,
    drift_gates,
    special_tokens_gate,
    tensor_limit,
    tokenizer_gate,
)
from smelt.validate.limits import SAME_DTYPE, TABLE, Limits, default_limits, read_limits
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
    divergence = Divergence(kld, 0, 0, 0, 0, 0.5, 1)
    return Drift(
        7.0,
        change,
        divergence,
        divergence,
        top1,
        top1,
        TargetShift(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        Flips(9, 1, 1, 0, ()),
        Histogram((), (9,)),
    )


def test_the_whole_interval_must_lie_within_the_limits() -> None:
    inside = a_drift(Interval(0.01, 0.0, 0.02), Interval(0.03, 0.02, 0.04), Interval(0.95, 0.92, 0.97))
    assert [gate.passed for gate in drift_gates(inside, Limits(0.03, 0.05, 0.9), 40)] == [True, True, True]
    across = a_drift(Interval(0.01, 0.0, 0.04), Interval(0.03, 0.02, 0.06), Interval(0.95, 0.88, 0.97))
    gates = drift_gates(across, Limits(0.03, 0.05, 0.9), 40)
    assert [gate.name for gate in gates] == ["perplexity", "kld", "top1"]
    assert [gate.passed for gate in gates] == [False, False, False]
    assert gates[0].value == pytest.approx(math.exp(0.04) - 1)
    assert (gates[1].value, gates[2].value) == (0.06, 0.88)


def test_what_has_no_limit_is_not_judged() -> None:
    drift = a_drift(Interval(9, 9, 9), Interval(0, 0, 0), Interval(0, 0, 0))
    assert [gate.name for gate in drift_gates(drift, SAME_DTYPE, 40)] == ["kld"]


def test_a_tensor_is_judged_by_its_own_type() -> None:
    assert tensor_limit(TensorDrift("t", "Q4_K", 4.5, same_dtype=False)) == 0.35
    assert tensor_limit(TensorDrift("t", "F32", 32, same_dtype=False)) == 0.02
    assert tensor_limit(TensorDrift("t", "F32", 32, same_dtype=True)) == 1e-6


def test_token_ids_that_end_early_are_different() -> None:
    gate = tokenizer_gate([1, 5, 6], [1, 5])
    assert not gate.passed
    assert gate.reason == "token 2 of the text is the end, the reference's is 6"


def test_a_gate_that_only_the_interval_fails_says_how_many_more_chunks_would_settle_it() -> None:
    wide = a_drift(Interval(0, 0, 0), Interval(0.04, 0.02, 0.06), Interval(1, 1, 1))
    gate = drift_gates(wide, Limits(max_kld=0.05), 40)[0]
    assert (gate.measured, gate.value, gate.passed) == (0.04, 0.06, False)
    assert gate.more_chunks == 120, "half the width takes four times the chunks"
    assert "about 120 more chunks" in gate.reason
    beyond = drift_gates(wide, Limits(max_kld=0.03), 40)[0]
    assert beyond.more_chunks is None
    assert "more text would not help" in beyond.reason
    agreement = a_drift(Interval(0, 0, 0), Interval(0, 0, 0), Interval(0.95, 0.91, 0.97))
    assert drift_gates(agreement, Limits(min_top1=0.93), 10)[0].more_chunks in (30, 31), "up to rounding"


def test_tails_and_the_five_likeliest_can_be_gated_too() -> None:
    found = a_drift(Interval(0, 0, 0), Interval(0, 0, 0), Interval(0.95, 0.91, 0.97))
    gates = drift_gates(found, Limits(max_kld_p999=0.4, min_top5=0.9), 40, "wiki")
    assert [(gate.name, gate.passed, gate.text) for gate in gates] == [
        ("kld p99.9", False, "wiki"),
        ("top5", True, "wiki"),
    ]


def test_a_file_of_gates_gives_limits_and_a_table(tmp_path: Path) -> None:
    file = tmp_path / "gates.toml"
    file.write_text(
        'max_kld_p999 = 1.5\n[[table]]\nmin_bits = 4\nmin_parameters = 30_000_000_000\nmax_ppl_drift = "1.5%"\n'
        '[[table]]\nmin_bits = 4\nmin_top1 = "92%"\n'
    )
    own, table = read_limits(file)
    assert own == Limits(max_kld_p999=1.5)
    assert default_limits(4.5, 65 * BILLION, False, table) == Limits(max_ppl_drift=0.015)
    assert default_limits(4.5, 7 * BILLION, False, table) == Limits(min_top1=0.92)
    assert default_limits(3.5, 7 * BILLION, False, table) == Limits(), "no row of that file applies"
    file.write_text("max_kld = 0.02")
    assert read_limits(file) == (Limits(max_kld=0.02), TABLE)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("max_kdl = 1", "'max_kdl' is no limit"),
        ("max_kld = true", "wanted a number"),
        ('max_kld = "a lot"', "wanted a number"),
        ("max_kld = -1", "wanted a number"),
        ("max_kld = nan", "wanted a number"),
        ("table = 3", "no list"),
        ("max_kld = ", "is not TOML"),
        ("[[table]]\nmin_bits = []", "min_bits"),
    ],
)
def test_what_is_no_gate_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "gates.toml").write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        read_limits(tmp_path / "gates.toml")
    assert "\n" not in str(caught.value)


def test_facts_that_change_the_arithmetic_are_told_apart() -> None:
    ours = {
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "rms_norm_eps": 1e-05,
        "hidden_size": 64,
    }
    assert config_gate(ours, {**ours, "rms_norm_eps": 9.999999747378752e-06}).passed
    gate = config_gate(ours, {**ours, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}})
    assert not gate.passed
    assert "rope_theta" in gate.reason
    assert not config_gate(ours, {key: ours[key] for key in ("rms_norm_eps", "hidden_size")}).passed


def test_another_begin_token_or_template_fails() -> None:
    ours = Tokenizer("llama", (), bos_id=1, eos_id=2, unk_id=0, chat_template="a")
    assert special_tokens_gate(ours, ours).passed
    for change in ({"bos_id": 2}, {"eos_id": None}, {"add_bos": False}, {"chat_template": "b"}):
        assert not special_tokens_gate(ours, replace(ours, **change)).passed
    gate = special_tokens_gate(ours, replace(ours, chat_template=None))
    assert gate.passed
    assert "the candidate has no chat template" in gate.reason
