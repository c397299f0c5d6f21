"""smelt beside ggml: the same bytes where the format is exact, never more error where the scale is searched."""

from __future__ import annotations

import pkgutil

import numpy as np
import pytest
import smelt.kernels.reference
from kernel_cases import DATA, EXACT, SEARCHED, errors, importances, load_ggml, matrices, searched_cases
from smelt.dtypes import DTYPES
from smelt.kernels.scheme import kernel

SPECIFIED = [name for _, name, _ in pkgutil.iter_modules(smelt.kernels.reference.__path__) if name.upper() in DTYPES]


def kernel_of(name):
    return kernel(DTYPES[name.upper()])


@pytest.fixture(scope="module")
def ggml():
    quantize = load_ggml()
    if quantize is None:
        pytest.skip("llama-cpp-python is not installed: ggml's recorded bytes and errors are compared instead")
    return quantize


@pytest.mark.parametrize("name", EXACT)
def test_exact_types_give_the_recorded_bytes_of_ggml(name):
    sample = matrices(rows=3, columns=512, seed=7)["student-5"]
    assert np.array_equal(kernel_of(name).encode(sample), np.load(DATA / "ggml.npz")[name])


@pytest.mark.parametrize("name", EXACT)
def test_exact_types_give_the_bytes_of_ggml(name, ggml):
    for rows in matrices(rows=64).values():
        assert np.array_equal(kernel_of(name).encode(rows), ggml(name, rows))


@pytest.mark.parametrize("name", [name for name in EXACT if name != "nvfp4"])  # which the package only reads
def test_exact_types_give_the_bytes_of_the_gguf_package(name):
    gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle")
    for rows in matrices(rows=64).values():
        expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name.upper()])
        assert np.array_equal(kernel_of(name).encode(rows), expected)


@pytest.mark.parametrize("name", [name for name in SPECIFIED if name not in ("f32", "f64", "f8_e4m3")])
def test_any_bits_decode_as_the_gguf_package_decodes_them(name):
    gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle")
    packed = np.random.RandomState(3).randint(0, 256, (33, DTYPES[name.upper()].nbytes * 4)).astype(np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name.upper()])
        got = kernel_of(name).decode(packed)
    assert np.array_equal(np.isnan(got), np.isnan(expected))
    assert np.array_equal(got[~np.isnan(got)].view(np.uint32), expected[~np.isnan(got)].view(np.uint32))


@pytest.mark.parametrize(("name", "with_importance"), SEARCHED)
def test_searched_types_keep_their_recorded_bytes(name, with_importance):
    sample = matrices(rows=3, columns=512, seed=7)["student-5"]
    importance = importances(512)["log-normal"] if with_importance else None
    expected = np.load(DATA / "smelt.npz")[f"{name} {'importance' if with_importance else 'plain'}"]
    assert np.array_equal(kernel_of(name).encode(sample, importance), expected)


@pytest.mark.parametrize(("name", "with_importance"), SEARCHED)
def test_searched_types_lose_no_more_than_ggml_was_recorded_to_lose(name, with_importance):
    recorded = np.load(DATA / "ggml.npz")
    for label, rows, importance in searched_cases(name, with_importance):
        got = errors(name, rows, importance, kernel_of(name).encode(rows, importance))
        assert all(np.array(got) <= recorded[f"errors {label}"]), label


@pytest.mark.parametrize(("name", "with_importance"), SEARCHED)
@pytest.mark.parametrize(("rows", "columns", "seed"), [(40, 768, 11), (8, 4096, 12)])
def test_searched_types_lose_no_more_than_ggml(name, with_importance, rows, columns, seed, ggml):
    for label, values, importance in searched_cases(name, with_importance, rows=rows, columns=columns, seed=seed):
        got = errors(name, values, importance, kernel_of(name).encode(values, importance))
        assert all(np.array(got) <= errors(name, values, importance, ggml(name, values, importance))), label
