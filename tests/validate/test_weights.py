from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from smelt.convert.model import LazyTensor, Model
from smelt.dtypes import F16, F32, Q4_0, Q8_0, DType
from smelt.kernels.scheme import kernel
from smelt.validate import weights
from smelt.validate.gates import tensor_limit
from smelt.validate.weights import compare_weights, listed, same_dtype

NAME = "model.layers.1.mlp.up_proj.weight"


def only(tiny: Any, other: Any) -> Any:
    drift = compare_weights(tiny.model(), [other.model()])[0]
    return next(tensor for tensor in drift.tensors if tensor.name == NAME)


@pytest.mark.parametrize("slab", [64, 1000, 1 << 19])
def test_slabs_give_the_numbers_of_the_whole_tensor(tiny: Any, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    monkeypatch.setattr(weights, "SLAB", slab)
    noisy = tiny.noisy(0.1)
    a, b = (each.weights[NAME].astype(np.float64) for each in (tiny, noisy))
    found = only(tiny, noisy)
    assert found.relative_error == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert found.cosine == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert found.max_error == pytest.approx(np.abs(a - b).max())
    assert found.sqnr_db == pytest.approx(20.0, abs=1.0)


def test_an_equal_tensor_has_no_error_and_no_noise(tiny: Any) -> None:
    found = only(tiny, tiny)
    assert (found.relative_error, found.cosine, found.max_error, found.sqnr_db) == (0.0, 1.0, 0.0, None)


def test_a_scaled_tensor_is_seen_though_its_cosine_is_one(tiny: Any) -> None:
    doubled = tiny.copy()
    doubled.weights[NAME] *= 2
    found = only(tiny, doubled)
    assert found.relative_error == pytest.approx(1.0)
    assert found.cosine == pytest.approx(1.0)
    assert not found.is_zero


def test_zeros_where_the_reference_has_zeros_are_no_damage(tiny: Any) -> None:
    empty = tiny.copy()
    empty.weights[NAME][:] = 0
    assert only(tiny, empty).is_zero
    assert only(empty, empty).relative_error == 0.0
    assert only(empty, tiny).relative_error == np.inf


def test_several_threads_give_the_same_numbers_in_the_same_order(tiny: Any) -> None:
    noisy = tiny.noisy(0.1)
    assert compare_weights(tiny.model(), [noisy.model()], 4) == compare_weights(tiny.model(), [noisy.model()], 1)


def test_a_tensor_that_is_new_is_a_problem(tiny: Any) -> None:
    more = tiny.copy()
    more.weights["model.extra.weight"] = np.ones(3, np.float32)
    assert compare_weights(tiny.model(), [more.model()])[0].problems == ("model.extra.weight is not in the reference",)


def test_the_dtype_is_the_same_only_where_every_matrix_agrees(tiny: Any) -> None:
    assert same_dtype(tiny.model(), tiny.model())
    assert not same_dtype(tiny.model(), tiny.model(F16))


@pytest.mark.parametrize(("dtype", "expected"), [(Q8_0, 0.007), (Q4_0, 0.09)])
def test_honestly_quantized_tensors_stay_far_below_their_limit(dtype: DType, expected: float) -> None:
    rows = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    packed = kernel(dtype).encode(rows, None)
    exact = LazyTensor("w", (64, 256), F32, lambda start, stop: rows[start:stop].view(np.uint8))
    coded = LazyTensor("w", (64, 256), dtype, lambda start, stop: packed[start:stop])
    models = [Model("llama", {}, None, {"w": tensor}, "gguf", ()) for tensor in (exact, coded)]
    found = compare_weights(models[0], models[1:])[0].tensors[0]
    assert found.relative_error == pytest.approx(expected, rel=0.3)
    assert found.relative_error < tensor_limit(found) / 3


def test_long_lists_are_cut_and_counted() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(11)]).endswith("6, 7 and 3 more")


def stored(rows: np.ndarray[Any, Any], dtype: DType) -> Any:
    """The drift of these rows stored as `dtype`, its first 64 weights lost."""
    packed = kernel(dtype).encode(rows, None)
    exact = LazyTensor("w", rows.shape, F32, lambda start, stop: rows[start:stop].view(np.uint8))
    packed[0, : 64 // dtype.block * dtype.nbytes] = 0
    coded = LazyTensor("w", rows.shape, dtype, lambda start, stop: packed[start:stop])
    models = [Model("llama", {}, None, {"w": tensor}, "gguf", ()) for tensor in (exact, coded)]
    return compare_weights(models[0], models[1:])[0].tensors[0]


def test_clipped_weights_and_lost_blocks_are_counted() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    found = stored(rows, Q4_0)
    assert (found.n_weights, found.n_blocks, found.zero_blocks) == (64 * 256, 64 * 8, 2)
    assert 0 < found.clipped_share == found.clipped / found.n_weights < 0.01
    assert stored(rows, Q8_0).clipped == 0
    assert (stored(rows, F16).n_blocks, stored(rows, F16).clipped) == (0, 0)


def test_a_tensor_says_what_eight_bits_would_cost() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    found = stored(rows, Q4_0)
    assert found.nbytes == 64 * 8 * 18
    assert found.extra_bytes_at_8_bits == 64 * 8 * (34 - 18)
    assert stored(rows, Q8_0).extra_bytes_at_8_bits == stored(rows, F16).extra_bytes_at_8_bits == 0
    assert found.document()["extra_bytes_at_8_bits"] == found.extra_bytes_at_8_bits
    assert {"zero_blocks", "clipped", "clipped_share", "nbytes", "sqnr_db", "max_error"} <= set(found.document())
