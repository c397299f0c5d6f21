"""Half-precision conversions, exhaustively."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from smelt.errors import NonFiniteError, ScaleOverflowError
from smelt.kernels.cpu import bf16 as cpu_bf16
from smelt.kernels.cpu import f16 as cpu_f16
from smelt.kernels.reference import bf16, f16, f32, f64

ALL_BITS = np.arange(65536, dtype=np.uint16)
FINITE_HALVES = ALL_BITS[np.isfinite(ALL_BITS.view(np.float16))]


def as_bytes(bits):
    return bits.reshape(1, -1).view(np.uint8)


@pytest.mark.parametrize("kernel", [f16, cpu_f16])
def test_every_half_widens_exactly(kernel):
    got, expected = kernel.decode(as_bytes(ALL_BITS))[0], ALL_BITS.view(np.float16).astype(np.float64)
    nan = np.isnan(expected)
    assert np.isnan(got[nan]).all()
    assert np.array_equal(got[~nan].astype(np.float64).view(np.uint64), expected[~nan].view(np.uint64))


@pytest.mark.parametrize("kernel", [bf16, cpu_bf16])
def test_every_bfloat_is_the_upper_half_of_a_float(kernel):
    got = kernel.decode(as_bytes(ALL_BITS))[0]
    assert np.array_equal(got.view(np.uint32), ALL_BITS.astype(np.uint32) << 16)


@pytest.mark.parametrize("kernel", [f16, cpu_f16])
def test_every_finite_half_survives_a_round_trip(kernel):
    assert np.array_equal(kernel.encode(kernel.decode(as_bytes(FINITE_HALVES))), as_bytes(FINITE_HALVES))


@pytest.mark.parametrize("kernel", [bf16, cpu_bf16])
def test_every_finite_bfloat_survives_a_round_trip(kernel):
    finite = ALL_BITS[(ALL_BITS & 0x7F80) != 0x7F80]
    assert np.array_equal(kernel.encode(kernel.decode(as_bytes(finite))), as_bytes(finite))


def test_halves_round_to_even_at_and_beside_every_middle():
    halves = np.sort(FINITE_HALVES.view(np.float16).astype(np.float64))
    middles = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)
    values = np.concatenate([np.nextafter(middles, np.float32(side)) for side in (-np.inf, np.inf)] + [middles])
    assert np.array_equal(cpu_f16.encode(values[None])[0].view(np.uint16), values.astype(np.float16).view(np.uint16))


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint32, st.integers(1, 300)))
def test_copies_narrow_as_the_reference_does(bits):
    values = bits.view(np.float32)
    values = np.where(np.isfinite(values), values, np.float32(0))[None]
    small = np.where(np.abs(values) < 65520, values, np.float32(0))
    assert np.array_equal(cpu_f16.encode(small), f16.encode(small))
    small = np.where(np.abs(values) < bf16.OVERFLOW, values, np.float32(0))
    assert np.array_equal(cpu_bf16.encode(small), bf16.encode(small))


@pytest.mark.parametrize("kernel", [bf16, cpu_bf16])
def test_bfloats_round_to_even(kernel):
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000], np.uint32)
    got = kernel.encode(bits.view(np.float32)[None])[0].view(np.uint16)
    assert got.tolist() == [0x3F80, 0x3F82, 0x3F81, 0x3F80, 0xBF82]


@pytest.mark.parametrize(
    ("kernel", "largest", "too_large"),
    [(kernel, 65519.996, 65520.0) for kernel in (f16, cpu_f16)]
    + [(kernel, np.nextafter(bf16.OVERFLOW, np.float32(0)), bf16.OVERFLOW) for kernel in (bf16, cpu_bf16)],
)
def test_refuses_exactly_what_would_round_to_infinity(kernel, largest, too_large):
    values = np.zeros((4, 6), np.float32)
    values[2, 5] = -largest
    assert np.isfinite(kernel.decode(kernel.encode(values))).all()
    values[2, 5] = -too_large
    with pytest.raises(ScaleOverflowError, match="row 2, column 5"):
        kernel.encode(values)


def test_float32_is_copied_bit_for_bit():
    values = np.array([[0.0, -0.0, 1e-45, 3.4e38, -1.5]], np.float32)
    assert np.array_equal(f32.decode(f32.encode(values)).view(np.uint32), values.view(np.uint32))


def test_float64_beyond_float32_decodes_to_infinity_and_is_then_refused():
    decoded = f64.decode(np.array([[1.0, 1e300]]).view(np.uint8))
    with pytest.raises(NonFiniteError, match="infinity at row 0, column 1"):
        f32.encode(decoded)
