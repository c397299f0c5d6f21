"""What params.json leaves out of a published model, and how rotary scaling is spelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from smelt.convert.architectures.llama import PUBLISHED, Published, from_params, shapes_from_params
from smelt.convert.rope import flatten_rope
from smelt.convert.rope_gguf import llama3_divisors
from smelt.errors import ModelError


def params_of(row: Published) -> dict[str, Any]:
    params = {"dim": row.dim, "n_layers": row.n_layers, "n_heads": row.n_heads, "n_kv_heads": row.n_kv_heads}
    params |= {"norm_eps": 1e-5, "multiple_of": 256}
    params |= {"rope_theta": row.rope_theta} if row.rope_theta != 1e4 else {}
    return params | ({"use_scaled_rope": True} if row.scaling else {})


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.name} {row.vocab}")
def test_a_published_model_is_known_by_what_its_files_say(row: Published) -> None:
    shapes, _ = shapes_from_params(params_of(row), row.vocab)
    config = from_params(params_of(row), shapes, row.dtype)
    assert config["max_position_embeddings"] == row.context
    assert config.get("tie_word_embeddings", False) == row.tied
    assert config.get("rope_scaling", {}).get("factor", 0) == row.scaling
    assert config["rope_theta"] == row.rope_theta


def test_a_model_that_nobody_published_has_no_context_and_metas_own_factor() -> None:
    row = next(row for row in PUBLISHED if row.name == "Llama 3.1 8B")
    params = params_of(row) | {"n_layers": 33}
    config = from_params(params, shapes_from_params(params, 1000)[0], "BF16")
    assert "max_position_embeddings" not in config
    assert config["rope_scaling"]["factor"] == 8


def test_a_longer_vocabulary_keeps_the_factor_of_its_shape() -> None:
    params = params_of(next(row for row in PUBLISHED if row.name == "Llama 3.2 1B"))
    assert from_params(params, shapes_from_params(params, 128300)[0], "F16")["rope_scaling"]["factor"] == 32


def test_a_shape_of_two_vocabularies_asks_which() -> None:
    params = params_of(next(row for row in PUBLISHED if row.name == "Code Llama 7B"))
    with pytest.raises(ModelError, match=r"32016 \(Code Llama 7B\) or 32000 .*--vocab-size"):
        shapes_from_params(params, None)


@pytest.mark.parametrize(
    ("head_dim", "factor", "n_ones", "between"),
    [(128, 8, 29, [1.2075, 1.5534, 2.0263, 2.6945, 3.6843, 5.2573]), (64, 32, 15, [1.6513, 3.2923, 9.6667])],
)
def test_divisors_are_those_of_llama_3(head_dim: int, factor: float, n_ones: int, between: list[float]) -> None:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    found = llama3_divisors({"head_dim": head_dim, "rope_theta": 5e5, "rope_scaling": scaling})
    assert found is not None and found.dtype == np.float32 and len(found) == head_dim // 2
    n_slow = head_dim // 2 - n_ones - len(between)
    assert found.tolist() == pytest.approx([1.0] * n_ones + between + [factor] * n_slow, rel=1e-4)


def test_both_spellings_of_rotary_facts_say_the_same() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}
    assert flatten_rope(new, False, "test") == flatten_rope(old, False, "test") == old
    kinds = {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}}
    assert flatten_rope({"rope_parameters": kinds}, True, "test") == {"rope_theta": 1e6, "rope_local_base_freq": 1e4}
    with pytest.raises(ModelError, match="one set of them"):
        flatten_rope({"rope_parameters": kinds}, False, "test")
    with pytest.raises(ModelError, match="rope_theta is 10000"):
        flatten_rope({**new, "rope_theta": 10000.0}, False, "test")
