"""Which types can be read, which can be made, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from smelt.dtypes import BLOCK, DTYPES, IQ1_S
from smelt.errors import UsageError
from smelt.kernels import scheme as schemes
from smelt.kernels.scheme import can_decode, can_encode, cast_scheme, decode, kernel


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if can_decode(dtype)], ids=str)
def test_the_fastest_copy_can_do_what_the_reference_can(dtype):
    assert hasattr(kernel(dtype), "encode") == can_encode(dtype)
    assert hasattr(kernel(dtype), "decode")


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in BLOCK if dtype.name.startswith(("IQ1", "IQ2", "IQ3", "TQ"))], ids=str
)
def test_every_codebook_and_ternary_type_can_be_read(dtype):
    assert decode(dtype, np.zeros((2, dtype.nbytes * 3), np.uint8)).shape == (2, dtype.block * 3)


def test_a_type_that_can_only_be_read_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(schemes, "can_encode", lambda _dtype: False)
    with pytest.raises(UsageError, match="IQ1_S: smelt can read this type, not make it"):
        cast_scheme(IQ1_S).encode(np.zeros((1, 256), np.float32), None)


def test_integers_have_no_arithmetic():
    assert not can_decode(DTYPES["I32"])
    with pytest.raises(UsageError, match="I32"):
        kernel(DTYPES["I32"])
