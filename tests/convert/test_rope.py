"""Rotary scaling of every kind between config.json and GGUF: facts, logits in both clients, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smelt.api import convert, convert_plan, open_checkpoint
from smelt.convert.rope import attention_factor
from smelt.errors import ModelError
from smelt.formats.gguf import GGUFValue, open_gguf

from .clients import llama_cpp_logits, transformers_logits
from .small_models import LLAMA3, LONG, YARN, rewritten, write

TOKENS = torch.randint(3, 512, (200,), generator=torch.Generator().manual_seed(1))
DYNAMIC = {"type": "dynamic", "factor": 2.5}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"type": "linear", "factor": 3},
    "yarn": YARN,
    "yarn, the older spelling": {"type": "yarn", "factor": 4.0, "finetuned": True},
    "yarn, its own attention": {**YARN, "attention_factor": 1.5},
    "yarn, two weights": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
    "yarn, betas said": {**YARN, "beta_fast": 32, "beta_slow": 1.0},
    "longrope": LONG,
    "longrope, a short text": {**LONG, "original_max_position_embeddings": 512},
    "longrope, its own attention": {**LONG, "attention_factor": 1.3, "factor": 8.0},
    "dynamic": DYNAMIC,
}
CASES = [
    *(("llama", kind) for kind in SCALINGS),
    *(("qwen2", kind) for kind in ("yarn", "yarn, its own attention", "dynamic")),
    *(("mixtral", kind) for kind in ("yarn", "longrope")),
]


def scaled(folder: Path, family: str, scaling: Any, **more: Any) -> Path:
    """A small model whose config.json says `scaling` in the older spelling."""
    write(folder, family, max_position_embeddings=256, head_dim=16)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": scaling, **more}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_scaling_comes_back_and_llama_cpp_turns_as_transformers_does(tmp_path: Path, family: str, kind: str) -> None:
    source = scaled(tmp_path / "hf", family, SCALINGS[kind])
    convert(source, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config
    wanted = transformers_logits(source, TOKENS)
    assert torch.equal(transformers_logits(tmp_path / "back", TOKENS), wanted)
    convert(rewritten(tmp_path / "m.gguf", tmp_path / "bare.gguf", "smelt."), tmp_path / "bare")
    assert (transformers_logits(tmp_path / "bare", TOKENS) - wanted).abs().max() < 1e-5
    assert (llama_cpp_logits(tmp_path / "m.gguf", TOKENS) - wanted).abs().max() < 1e-4


def test_an_attention_factor_as_llama_cpps_converter_writes_it_is_the_configs(tmp_path: Path) -> None:
    """The converter writes the whole factor under a key that the loader passes over in these families."""
    convert(scaled(tmp_path / "hf", "llama", YARN), tmp_path / "m.gguf")
    key = "llama.rope.scaling.yarn_attn_factor"
    rewritten(tmp_path / "m.gguf", tmp_path / "theirs.gguf", "smelt.", **{key: GGUFValue("f32", 1.5)})
    config = open_checkpoint(tmp_path / "theirs.gguf").config
    assert attention_factor(config) == config["rope_scaling"]["attention_factor"] == 1.5
    convert(tmp_path / "theirs.gguf", tmp_path / "ours.gguf")
    metadata = open_gguf(tmp_path / "ours.gguf").metadata
    assert metadata["llama.rope.scaling.attn_factor"] == np.float32(1.5 / (0.1 * np.log(4) + 1)) and key not in metadata


def test_a_plan_says_that_gguf_has_no_dynamic_scaling(tmp_path: Path) -> None:
    source = scaled(tmp_path / "hf", "llama", DYNAMIC)
    (note,) = (note for note in convert_plan(source, tmp_path / "m.gguf").notes if "dynamic" in note)
    assert "up to 256 tokens" in note and "\n" not in note
    assert not any("dynamic" in note for note in convert_plan(source, tmp_path / "out").notes)


def test_divisors_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    convert(scaled(tmp_path / "hf", "llama", LONG), tmp_path / "m.gguf")
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    offset = open_gguf(tmp_path / "m.gguf").tensors["rope_factors_long.weight"].offset
    content[offset : offset + 4] = np.float32(3.5).tobytes()
    (tmp_path / "edited.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=r"rope_factors_long\.weight is not what .*longrope's long_factor alone"):
        open_checkpoint(tmp_path / "edited.gguf")


def test_the_original_context_beside_the_scaling_has_the_last_word(tmp_path: Path) -> None:
    source = scaled(tmp_path / "hf", "llama", YARN, original_max_position_embeddings=64)
    convert(source, tmp_path / "m.gguf")
    assert open_gguf(tmp_path / "m.gguf").metadata["llama.rope.scaling.original_context_length"] == 64


def test_a_config_that_leaves_out_its_base_has_that_of_its_class(tmp_path: Path) -> None:
    source = scaled(tmp_path / "hf", "mistral", YARN)
    config = json.loads((source / "config.json").read_text())
    del config["rope_theta"]
    (source / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(source).config["rope_theta"] == 10000.0


def test_a_base_among_the_scaling_is_the_models(tmp_path: Path) -> None:
    source = scaled(tmp_path / "hf", "llama", {**YARN, "rope_theta": 10000.0})
    assert open_checkpoint(source).config["rope_scaling"] == YARN
    config = json.loads((source / "config.json").read_text())
    del config["rope_theta"]
    config["rope_scaling"]["rope_theta"] = 500000.0
    (source / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(source).config["rope_theta"] == 500000.0
    convert(source, tmp_path / "out")
    assert torch.equal(transformers_logits(tmp_path / "out", TOKENS), transformers_logits(source, TOKENS))
    (source / "config.json").write_text(json.dumps(config | {"rope_theta": 10000.0}))
    with pytest.raises(ModelError, match="among the rotary parameters 500000"):
        open_checkpoint(source)


REFUSED = [
    ("llama", {**YARN, "beta_fast": 8}, "beta_fast is 8, llama.cpp computes yarn with 32"),
    ("qwen3", {**YARN, "beta_slow": 2.0}, r"beta_slow is 2\.0"),
    ("llama", {**YARN, "truncate": False}, "truncate is false"),
    ("llama", {**YARN, "factor": "4"}, "factor is '4'"),
    ("llama", {**YARN, "attention_factor": 0}, "attention_factor is 0"),
    ("llama", {**YARN, "original_max_position_embeddings": 2.5}, "original_max_position_embeddings"),
    ("llama", {**LONG, "long_factor": [1.0, 2.0]}, "long_factor"),
    ("llama", {**LONG, "short_factor": None}, "short_factor is None"),
    ("llama", {"rope_type": "proportional", "factor": 2.0}, "proportional"),
    ("qwen2", LONG, "longrope, which llama.cpp does not compute"),
    ("qwen2", {**LLAMA3, "factor": 8.0}, "llama3, which llama.cpp does not compute"),
    ("gemma3", YARN, "yarn"),
]


@pytest.mark.parametrize(("family", "scaling", "says"), REFUSED)
def test_what_gguf_or_smelt_cannot_say_is_refused_in_a_line(
    tmp_path: Path, family: str, scaling: dict[str, Any], says: str
) -> None:
    write(tmp_path / "hf", family)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config.pop("rope_parameters", None)
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0, "rope_scaling": scaling}))
    with pytest.raises(ModelError, match=says) as caught:
        convert(tmp_path / "hf", tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["linear", "yarn", "longrope", "dynamic"])
def test_meta_has_no_word_for_it(tmp_path: Path, kind: str) -> None:
    source = scaled(tmp_path / "hf", "llama", SCALINGS[kind])
    with pytest.raises(ModelError, match=r"params\.json cannot say so, choose --to safetensors or gguf"):
        convert(source, tmp_path / "meta", to="meta")


@pytest.mark.parametrize("value", [GGUFValue("string", "x"), GGUFValue("bool", True), GGUFValue("f32", float("nan"))])
@pytest.mark.parametrize(
    "key", ["factor", "original_context_length", "attn_factor", "yarn_attn_factor", "yarn_beta_fast"]
)
def test_a_key_that_is_no_number_is_refused_in_a_line(tmp_path: Path, key: str, value: GGUFValue) -> None:
    convert(scaled(tmp_path / "hf", "llama", YARN), tmp_path / "m.gguf")
    odd = {f"llama.rope.scaling.{key}": value}
    rewritten(tmp_path / "m.gguf", tmp_path / "odd.gguf", "smelt.", **odd)
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path / "odd.gguf")
    assert "\n" not in str(caught.value)
