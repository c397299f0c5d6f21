"""Stored tensors that hold several canonical ones, and back: joined rows, joined vectors, stacked experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from smelt.convert.architecture import Family, Row, families
from smelt.convert.assemble import assemble, lay_out
from smelt.convert.layouts import part_of
from smelt.convert.model import LazyTensor
from smelt.dtypes import DTYPES, F32
from smelt.errors import ModelError

_QKV, _BIAS = "h.{layer}.qkv.weight", "h.{layer}.qkv.bias"
FAMILY = Family(
    name="made-up",
    model_type="made-up",
    hugging_face_class="MadeUp",
    gguf="made-up",
    rows=(
        Row("attn_k", "l.{layer}.k.weight", None, _QKV, None, ("kv_rows", "hidden_size")),
        Row("attn_k", "l.{layer}.k.bias", None, _BIAS, None, ("kv_rows",), when="biased"),
        Row("attn_q", "l.{layer}.q.weight", None, _QKV, None, ("q_rows", "hidden_size")),
        Row("attn_q", "l.{layer}.q.bias", None, _BIAS, None, ("q_rows",), when="biased"),
        Row("ffn_up_exps", "l.{layer}.{expert}.up", None, "h.{layer}.ups", None, ("hidden_size", "hidden_size")),
        Row("ffn_up_exps", "l.{layer}.{expert}.b", None, "h.{layer}.bs", None, ("hidden_size",)),
        Row("output_norm", "norm", None, "norm", None, ("hidden_size",)),
    ),
    facts=(),
    drops=(),
    constants={},
    experts="n_experts",
)
CONFIG = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "n_experts": 3,
    "biased": True,
}


def lazy(name: str, values: np.ndarray) -> LazyTensor:
    raw = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1]).view(np.uint8)
    return LazyTensor(name, values.shape, F32, lambda start, stop: raw[start:stop].copy())


def stored() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"norm": (8,)}
    for layer in range(2):
        shapes |= {f"h.{layer}.qkv.weight": (12, 8), f"h.{layer}.qkv.bias": (12,)}
        shapes |= {f"h.{layer}.ups": (3, 8, 8), f"h.{layer}.bs": (3, 8)}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_joined_and_stacked_tensors_are_taken_apart_in_the_tables_order() -> None:
    values = stored()
    tensors, names = assemble(FAMILY, "gguf", {name: lazy(name, v) for name, v in values.items()}, CONFIG, "test")
    assert (tensors["l.1.k.weight"].load_float32() == values["h.1.qkv.weight"][:4]).all()
    assert (tensors["l.1.q.weight"].read_float32(2, 5) == values["h.1.qkv.weight"][6:9]).all()
    assert (tensors["l.0.q.bias"].load_float32() == values["h.0.qkv.bias"][4:]).all()
    assert (tensors["l.0.2.up"].load_float32() == values["h.0.ups"][2]).all()
    assert (tensors["l.0.1.b"].load_float32() == values["h.0.bs"][1]).all()
    assert names["l.0.2.up"] == "h.0.ups"


def test_parts_fill_the_stored_tensor_one_after_another() -> None:
    values = stored()
    tensors, _ = assemble(FAMILY, "gguf", {name: lazy(name, v) for name, v in values.items()}, CONFIG, "test")
    laid = {one.name: one for one in lay_out(FAMILY, "gguf", tensors, CONFIG)}
    assert {name: one.shape for name, one in laid.items()} == {name: v.shape for name, v in values.items()}
    for name, one in laid.items():
        flat = np.concatenate([part.load_float32().reshape(-1) for part in one.parts])
        assert (flat == values[name].reshape(-1)).all()


def test_a_stored_tensor_of_which_a_part_is_missing_is_not_written() -> None:
    tensors, _ = assemble(FAMILY, "gguf", {name: lazy(name, v) for name, v in stored().items()}, CONFIG, "test")
    del tensors["l.0.q.weight"]
    with pytest.raises(ModelError, match=r"h\.0\.qkv\.weight: cannot be written without l\.0\.q\.weight"):
        lay_out(FAMILY, "gguf", tensors, CONFIG)


def test_tensors_that_the_config_excludes_and_shapes_of_other_counts_are_refused() -> None:
    tensors = {name: lazy(name, v) for name, v in stored().items()}
    with pytest.raises(ModelError, match=r"not there, yet they are: h\.0\.qkv\.bias"):
        assemble(FAMILY, "gguf", tensors, CONFIG | {"biased": False}, "test")
    with pytest.raises(ModelError, match=r"h\.0\.ups is \[3, 8, 8\], wanted \[4, 8, 8\]"):
        assemble(FAMILY, "gguf", tensors, CONFIG | {"n_experts": 4}, "test")
    with pytest.raises(ModelError, match="experts"):
        assemble(FAMILY, "gguf", tensors, CONFIG | {"n_experts": 1 << 30}, "test")


def test_parts_of_one_stored_tensor_share_a_dtype() -> None:
    tensors, _ = assemble(FAMILY, "gguf", {name: lazy(name, v) for name, v in stored().items()}, CONFIG, "test")
    tensors["l.0.1.up"] = replace(tensors["l.0.1.up"], dtype=DTYPES["F16"])
    with pytest.raises(ModelError, match=r"h\.0\.ups: its parts are F16 and F32"):
        lay_out(FAMILY, "gguf", tensors, CONFIG)


def test_packed_rows_are_taken_apart_whole() -> None:
    dtype = DTYPES["Q8_0"]
    raw = np.arange(6 * dtype.row_nbytes(64), dtype=np.uint8).reshape(6, -1)
    whole = LazyTensor("w", (3, 2, 64), dtype, lambda start, stop: raw[start:stop])
    assert (part_of(whole, "p", (2, 64), 2 * 64).read(0, 2) == raw[2:4]).all()


def test_names_of_a_family_are_told_apart() -> None:
    """No two rows of a family have one canonical name, and only one stored name stands for several rows on purpose."""
    for family in families():
        canonical = [row.canonical for row in family.rows]
        assert len(set(canonical)) == len(canonical)
        assert all(("{layer}" in row.canonical) == ("{layer}" in (row.gguf or row.canonical)) for row in family.rows)
