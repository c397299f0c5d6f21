"""Every family: names, facts and tensors there and back, and the numbers that its clients compute.

Adding a family to `architectures/` is a red test here until it has a tiny model in `TINY`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smelt.api import convert, open_checkpoint, quantize
from smelt.convert.architecture import expected, families, family_by
from smelt.convert.assemble import HEAD
from smelt.convert.options import OpenOptions
from smelt.errors import ModelError
from smelt.formats.gguf import GGUFValue, open_gguf

from .small_models import TINY, TOKENS, VOCAB, is_of_llama_cpp, logits, payloads, rewritten, write

EVERY = pytest.mark.parametrize("name", TINY)


def test_every_family_has_a_tiny_model() -> None:
    assert {tiny.family for tiny in TINY.values()} == {family.name for family in families() if family.gguf is not None}


@EVERY
def test_the_table_names_every_tensor_that_transformers_writes(tmp_path: Path, name: str) -> None:
    model = open_checkpoint(write(tmp_path / "hf", name))
    family = family_by("name", TINY[name].family, name)
    wanted = {match.name("canonical") for match in expected(family, model.config)}
    if model.config["tie_word_embeddings"]:
        wanted -= {HEAD}
    assert set(payloads(tmp_path / "hf")) == wanted == set(model.tensors)


@EVERY
def test_the_table_names_tensors_as_llama_cpp_does(tmp_path: Path, name: str) -> None:
    gguf = pytest.importorskip("gguf", reason="it holds the names")
    family = family_by("name", TINY[name].family, name)
    if not is_of_llama_cpp(family):
        pytest.skip(f"{family.gguf_note}")
    architecture = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == family.gguf)
    known = {gguf.TENSOR_NAMES[key].replace("{bid}", "{layer}") for key in gguf.MODEL_TENSORS[architecture]}
    named = {row.gguf.rsplit(".", 1)[0] for row in family.rows if row.gguf is not None}
    assert named <= known


@EVERY
def test_tensors_and_facts_come_back_from_gguf(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "hf", name, torch.bfloat16)
    convert(source, tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(source)
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config


@EVERY
def test_a_file_of_others_tells_what_the_numbers_need(tmp_path: Path, name: str) -> None:
    source = write(
        tmp_path / "hf",
        name,
        torch.bfloat16,
        **(
            {"rope_scaling": {**TINY[name].config["rope_scaling"], "original_max_position_embeddings": 8192}}
            if "llama 3" in name
            else {}
        ),
    )
    convert(source, tmp_path / "m.gguf")
    bare = rewritten(tmp_path / "m.gguf", tmp_path / "bare.gguf", "smelt.")
    convert(bare, tmp_path / "back", dtype="f32")
    assert np.array_equal(logits(tmp_path / "back"), logits(source))


def test_layers_of_every_family_take_llama_cpps_types(tmp_path: Path) -> None:
    """Experts share their stored tensor's type, a router and norms stay F32, and the rest is as for LLaMA."""
    found = {}
    for name in ("mixtral", "qwen3", "gemma"):
        source = write(tmp_path / name, name, hidden_size=256, intermediate_size=512, head_dim=64)
        quantize(source, tmp_path / f"{name}.gguf", "q4_k_m", options=OpenOptions(context_length=32))
        tensors = open_gguf(tmp_path / f"{name}.gguf").tensors
        found |= {f"{name}.{key}": tensor.dtype.name for key, tensor in tensors.items() if "blk.0." in key}
    assert {found[f"mixtral.blk.0.ffn_{part}_exps.weight"] for part in ("gate", "up")} == {"Q4_K"}
    assert found["mixtral.blk.0.ffn_down_exps.weight"] == found["qwen3.blk.0.ffn_down.weight"] == "Q4_K"
    norms = ("mixtral.blk.0.ffn_gate_inp", "qwen3.blk.0.attn_q_norm", "gemma.blk.0.ffn_norm")
    assert {found[f"{name}.weight"] for name in norms} == {"F32"}


@EVERY
def test_every_family_quantizes(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "hf", name)
    quantize(source, tmp_path / "m.gguf", "q8_0")
    model = open_checkpoint(tmp_path / "m.gguf")
    assert set(model.tensors) == set(open_checkpoint(source).tensors)
    assert {tensor.dtype.name for tensor in model.tensors.values() if len(tensor.shape) > 1} <= {"Q8_0", "F32"}
    for key, tensor in model.tensors.items():
        wanted = open_checkpoint(source).tensors[key].load_float32()
        assert np.abs(tensor.load_float32() - wanted).max() <= np.abs(wanted).max() / 127


def test_norms_that_adding_one_rounds_come_back_whole(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "gemma", torch.bfloat16)
    path = tmp_path / "hf" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    state = load_file(path)
    state["model.norm.weight"][:4] = torch.tensor([1e-9, -3e-6, 1e20, 0.0])
    save_file(state, path, {"format": "pt"})
    convert(source, tmp_path / "m.gguf")
    kept = [key for key in open_gguf(tmp_path / "m.gguf").metadata if key.startswith("smelt.norm.")]
    assert kept == ["smelt.norm.output_norm.weight"]
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(source)


def test_a_norm_that_was_edited_is_not_taken_from_what_was_kept(tmp_path: Path) -> None:
    write(tmp_path / "hf", "gemma")
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    name = "blk.0.attn_norm.weight"
    assert f"smelt.norm.{name}" in open_gguf(tmp_path / "m.gguf").metadata
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    offset = open_gguf(tmp_path / "m.gguf").tensors[name].offset
    content[offset : offset + 4] = np.float32(3.5).tobytes()
    (tmp_path / "edited.gguf").write_bytes(content)
    before, after = (
        open_checkpoint(tmp_path / file).tensors["model.layers.0.input_layernorm.weight"].load_float32()
        for file in ("m.gguf", "edited.gguf")
    )
    assert after[0] == 2.5 and (after[1:] == before[1:]).all()


def test_an_end_that_config_and_vocabulary_name_apart_stays_so_until_it_is_edited(tmp_path: Path) -> None:
    convert(write(tmp_path / "hf", "qwen2"), tmp_path / "m.gguf")
    model = open_checkpoint(tmp_path / "m.gguf")
    assert model.tokenizer is not None and (model.config["eos_token_id"], model.tokenizer.eos_id) == (2, VOCAB - 2)
    key = "tokenizer.ggml.eos_token_id"
    rewritten(tmp_path / "m.gguf", tmp_path / "edited.gguf", "no key", **{key: GGUFValue("u32", 5)})
    assert open_checkpoint(tmp_path / "edited.gguf").config["eos_token_id"] == 5


REFUSED = [
    ("mistral", {"sliding_window": 64}, "--context-length 64"),
    ("mixtral", {"num_experts_per_tok": 9}, "more experts"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 32}, "sliding_window"),
    ("qwen3", {"attention_bias": True}, "attention_bias"),
    ("gemma", {"hidden_act": "relu"}, "hidden_act"),
    ("gemma", {"tie_word_embeddings": False}, "lm_head|no name in gguf"),
    ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "layer_types"),
    ("gemma3", {"rope_local_base_freq": 20000.0}, "rope_local_base_freq"),
    ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ("llama", {"rope_scaling": {"factor": 8.0}}, "rope_scaling"),
    ("llama", {"rope_scaling": "linear"}, "rope_scaling"),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
    ("bloom", {"num_key_value_heads": 2}, "num_key_value_heads 2 is not 4"),
    ("bloom", {"intermediate_size": 128}, "intermediate_size 128 is not 256"),
    ("opt", {"hidden_size": 66}, "hidden_size 66 does not divide"),
    ("opt", {"max_position_embeddings": 64}, r"embed_positions.weight is \[130, 64\], wanted \[66, 64\]"),
    ("opt", {"enable_bias": "no"}, "enable_bias"),
]


@pytest.mark.parametrize(("name", "changes", "says"), REFUSED)
def test_what_would_change_the_numbers_is_refused_in_a_line(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    folder = write(tmp_path / "hf", name)
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "layer_types"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0, **changes}))
    with pytest.raises(ModelError, match=says) as caught:
        convert(folder, tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_a_window_that_no_token_reaches_is_no_obstacle(tmp_path: Path) -> None:
    folder = write(tmp_path / "hf", "mistral", sliding_window=64)
    convert(folder, tmp_path / "m.gguf", options=OpenOptions(context_length=64))
    assert open_checkpoint(tmp_path / "m.gguf").config["sliding_window"] == 64


@pytest.mark.parametrize("name", ["mixtral", "gemma3", "qwen2, tied", "llama, longrope", "bloom", "opt", "opt, 350M"])
def test_a_replay_of_layers_gives_the_forwards_logits(tmp_path: Path, name: str) -> None:
    from smelt.validate.stream import Stream, run_layers

    source = write(tmp_path / "hf", name)
    convert(source, tmp_path / "m.gguf", dtype="f32")
    stream = Stream(name, open_checkpoint(tmp_path / "m.gguf"), [TOKENS.numpy()])
    run_layers([stream], lambda _index, _layer, bad: bad is None)
    rows = stream.model.tensors[stream.replay.head_name].load_float32()
    found = stream.replay.logits(stream.states[0], torch.from_numpy(rows))
    assert np.abs(found.numpy() - logits(source)).max() < 1e-5
