"""What every number format promises, tried on every module in `reference` and every copy in `cpu`."""

from __future__ import annotations

import importlib
import pkgutil

import numpy as np
import pytest
import smelt.kernels.cpu
import smelt.kernels.reference
from kernel_cases import CODEBOOK, SEARCHED, importances
from smelt.dtypes import DTYPES
from smelt.errors import InputError, ModelError, NonFiniteError, ScaleOverflowError


def types_in(room):
    return [name for _, name, _ in pkgutil.iter_modules(room.__path__) if name.upper() in DTYPES]


SPECIFIED, COPIED = types_in(smelt.kernels.reference), types_in(smelt.kernels.cpu)
ALL = [f"reference.{name}" for name in SPECIFIED] + [f"cpu.{name}" for name in COPIED]
TERNARY = ("tq1_0", "tq2_0")
UNCHANGED = ("f32", "f16", "bf16", "f64", "q8_0", "mxfp4", "nvfp4", *TERNARY)
LARGEST = {"nvfp4": 2700.0}  # where a format cannot hold every fp16 number
COARSE = {
    "mxfp4": (0.25, 0),
    "nvfp4": (0.2, 6 / 1024),
    **dict.fromkeys((*TERNARY, *CODEBOOK), (0.5, 0)),
}  # of the largest, and absolute


def module(path):
    return importlib.import_module(f"smelt.kernels.{path}")


MAKING = [path for path in ALL if hasattr(module(path), "encode")]
WEIGHING = [path for path in MAKING if (path.split(".")[1], True) in SEARCHED]


def blocks(kernel, rows, n_blocks, seed=0):
    columns = max(kernel.DTYPE.block, 8) * n_blocks
    return (np.random.RandomState(seed).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def special_rows(kernel):
    """Blocks that divide by zero, cancel or underflow where arithmetic is careless; one row each."""
    row = blocks(kernel, 1, 2)[0]
    outlier, only_outlier, alike = row.copy(), np.zeros_like(row), np.where(np.arange(row.size) % 2, 0.5, -0.5)
    outlier[5], only_outlier[-1] = 65504.0, 65504.0
    found = [row * 0, -row * 0, row * 0 + 1, row * 0 - 1, row * 1e-40, row * 1e-30, row * 1e-6, row * 1e4, outlier]
    found += [only_outlier, np.abs(row), -np.abs(row), alike, -alike, row * 2e-4, np.where(row > 0, 1e-45, 0)]
    largest = LARGEST.get(kernel.DTYPE.name.lower(), 65504.0)
    return np.clip(np.array(found, np.float32), -largest, largest)


@pytest.mark.parametrize("path", ALL)
def test_decoded_rows_have_the_declared_size(path):
    kernel = module(path)
    for rows, n_blocks in ((1, 1), (7, 3), (0, 2), (3, 9)):
        decoded = kernel.decode(np.zeros((rows, kernel.DTYPE.nbytes * n_blocks), np.uint8))
        assert decoded.dtype == np.float32 and decoded.shape == (rows, kernel.DTYPE.block * n_blocks)


@pytest.mark.parametrize("path", MAKING)
def test_packed_rows_have_the_declared_size(path):
    kernel = module(path)
    for rows, n_blocks in ((1, 1), (7, 3), (0, 2), (3, 9)):
        values = blocks(kernel, rows, n_blocks)
        packed = kernel.encode(values)
        assert packed.dtype == np.uint8 and packed.shape == (rows, kernel.DTYPE.row_nbytes(values.shape[1]))
        decoded = kernel.decode(packed)
        assert decoded.dtype == np.float32 and decoded.shape == values.shape


@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("with_importance", [False, True])
def test_copy_gives_the_bytes_of_the_reference(name, with_importance):
    reference, copy = module(f"reference.{name}"), module(f"cpu.{name}")
    cases = [blocks(reference, rows, n) for rows, n in ((1, 1), (7, 3), (0, 2), (5, 11))]
    for values in [*cases, special_rows(reference), special_rows(reference)[:, ::-1]]:
        importance = importances(values.shape[1])["chi-square"] if with_importance else None
        expected = reference.encode(values, importance)
        assert np.array_equal(copy.encode(values, importance), expected)
        assert np.array_equal(copy.decode(expected).view(np.uint32), reference.decode(expected).view(np.uint32))


@pytest.mark.parametrize("path", MAKING)
def test_rows_do_not_depend_on_their_neighbours(path):
    kernel = module(path)
    values = blocks(kernel, 19, 3)
    importance = importances(values.shape[1])["log-normal"]
    whole = kernel.encode(values, importance)
    for start, stop in ((0, 1), (5, 19), (18, 19)):
        assert np.array_equal(kernel.encode(values[start:stop], importance), whole[start:stop])


@pytest.mark.parametrize("path", MAKING)
def test_special_blocks_decode_to_something_near(path):
    kernel = module(path)
    values = special_rows(kernel)
    decoded = kernel.decode(kernel.encode(values))
    assert np.isfinite(decoded).all()
    relative, absolute = COARSE.get(kernel.DTYPE.name.lower(), (0.2, 0))
    assert (np.abs(decoded - values).max(axis=1) <= np.abs(values).max(axis=1) * relative + absolute + 1e-5).all()


@pytest.mark.parametrize("path", MAKING)
def test_zeros_stay_zeros(path):
    kernel = module(path)
    values = np.zeros((3, kernel.DTYPE.block * 5), np.float32)
    assert (kernel.decode(kernel.encode(values)) == 0).all()
    assert (kernel.decode(kernel.encode(values, np.ones(values.shape[1], np.float32))) == 0).all()


@pytest.mark.parametrize("path", MAKING)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("with_importance", [False, True])
def test_refuses_what_is_not_finite_and_says_where(path, bad, with_importance):
    kernel = module(path)
    values = blocks(kernel, 11, 3)
    importance = np.ones(values.shape[1], np.float32) if with_importance else None
    values[0, 0], values[3, 17], values[10, -1] = 1e37, bad, np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 17") as caught:
        kernel.encode(values, importance)
    assert (caught.value.row, caught.value.column) == (3, 17)


@pytest.mark.parametrize("path", [path for path in MAKING if path.split(".")[1] not in ("f32", "f64", "bf16", "mxfp4")])
@pytest.mark.parametrize("with_importance", [False, True])
def test_refuses_what_fp16_cannot_hold_and_says_where(path, with_importance):
    kernel = module(path)
    values = blocks(kernel, 11, 3)
    importance = np.ones(values.shape[1], np.float32) if with_importance else None
    column = 2 * values.shape[1] // 3
    for large in (4e9, -4e9, 3.4e38):
        values[9, column] = large
        with pytest.raises(ScaleOverflowError, match="row 9, column") as caught:
            kernel.encode(values, importance)
        assert (caught.value.row, caught.value.column) == (9, column)


@pytest.mark.parametrize("name", COPIED)
def test_copy_refuses_the_same_scales_as_the_reference(name):
    reference, copy = module(f"reference.{name}"), module(f"cpu.{name}")
    for exponent in np.arange(14, 34, 0.25):
        values = blocks(reference, 5, 2)
        values[3] *= np.float32(2.0**exponent)
        outcomes = []
        for kernel in (reference, copy):
            try:
                outcomes.append(kernel.encode(values).tobytes())
            except ScaleOverflowError as error:
                outcomes.append((str(error), error.row, error.column))
        assert outcomes[0] == outcomes[1], exponent


@pytest.mark.parametrize("path", [path for path in MAKING if module(path).DTYPE.is_block])
def test_refuses_rows_that_are_not_whole_blocks(path):
    kernel = module(path)
    with pytest.raises(ModelError, match=kernel.DTYPE.name):
        kernel.encode(np.zeros((2, kernel.DTYPE.block + 8), np.float32))


@pytest.mark.parametrize("path", WEIGHING)
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_refuses_an_importance_that_is_none(path, bad):
    kernel = module(path)
    values = blocks(kernel, 2, 1)
    importance = np.ones(values.shape[1], np.float32)
    importance[4] = bad
    with pytest.raises(InputError, match="column 4"):
        kernel.encode(values, importance)
    with pytest.raises(InputError, match="importance has shape"):
        kernel.encode(values, importance[:-1])


@pytest.mark.parametrize("path", WEIGHING)
def test_importance_moves_error_away_from_important_columns(path):
    kernel = module(path)
    values = blocks(kernel, 40, 2)
    important = np.arange(values.shape[1]) % 4 == 0
    importance = np.where(important, 100.0, 1.0).astype(np.float32)
    aware, blind = (kernel.decode(kernel.encode(values, given)) for given in (importance, None))
    assert ((aware - values)[:, important] ** 2).sum() < 0.9 * ((blind - values)[:, important] ** 2).sum()


@pytest.mark.parametrize("path", WEIGHING)
def test_importance_has_no_unit_and_zero_means_none(path):
    kernel = module(path)
    values = blocks(kernel, 3, 2)
    importance = importances(values.shape[1])["mild"]
    assert np.array_equal(kernel.encode(values, importance * np.float32(2.0**40)), kernel.encode(values, importance))
    flat = np.ones(values.shape[1], np.float32)
    assert np.array_equal(kernel.encode(values, flat * 0), kernel.encode(values, flat))


@pytest.mark.parametrize("path", [path for path in ALL if path.split(".")[1] in UNCHANGED])
def test_encoding_what_was_decoded_changes_nothing(path):
    kernel = module(path)
    once = kernel.encode(blocks(kernel, 7, 5))
    assert np.array_equal(kernel.encode(kernel.decode(once)), once)
