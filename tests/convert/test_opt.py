"""OPT: files without the head's prefix, what stays unquantized, and a GGUF architecture that is smelt's alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from smelt.api import convert, convert_plan, fit, open_checkpoint, quantize
from smelt.errors import ModelError
from smelt.formats.gguf import GGUFValue, open_gguf

from .small_models import payloads, rewritten, write

pytest.importorskip("transformers", reason="it writes the models")


def test_a_bin_of_the_decoder_alone_is_the_same_model(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "opt, 350M")
    wanted = payloads(source)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({name.removeprefix("model."): tensor for name, tensor in state.items()}, source / "pytorch_model.bin")
    convert(source, tmp_path / "out")
    assert payloads(tmp_path / "out") == wanted
    assert "decoder.project_in.weight" in open_checkpoint(source).stored_names.values()


def test_a_config_that_says_little_is_as_its_class_has_it(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "opt", max_position_embeddings=2048)
    config = json.loads((source / "config.json").read_text())
    kept = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "ffn_dim")
    (source / "config.json").write_text(json.dumps({key: config[key] for key in kept}))
    found = open_checkpoint(source).config
    assert (found["max_position_embeddings"], found["word_embed_proj_dim"]) == (2048, 64)
    assert found["tie_word_embeddings"] is True and found["do_layer_norm_before"] is True


def test_positions_and_vectors_stay_float32(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "opt, 350M", hidden_size=256, ffn_dim=512, word_embed_proj_dim=256 * 2)
    quantize(source, tmp_path / "m.gguf", "q4_k_m")
    types = {name: tensor.dtype.name for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items()}
    assert types["position_embd.weight"] == types["blk.0.attn_q.bias"] == types["blk.0.attn_norm.weight"] == "F32"
    assert types["project_in.weight"] == types["blk.1.attn_q.weight"] == "Q4_K"
    assert types["token_embd.weight"] == "Q6_K"


def test_a_plan_for_gguf_says_that_llama_cpp_cannot_read_it(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "opt")
    assert any("llama.cpp has no OPT" in note for note in convert_plan(source, tmp_path / "m.gguf").notes)
    assert not any("llama.cpp" in note for note in convert_plan(source, tmp_path / "out").notes)


def test_an_epsilon_that_opt_does_not_have_is_refused(tmp_path: Path) -> None:
    convert(write(tmp_path / "hf", "opt"), tmp_path / "m.gguf")
    other = {"opt.attention.layer_norm_epsilon": GGUFValue("f32", 1e-6)}
    rewritten(tmp_path / "m.gguf", tmp_path / "odd.gguf", "smelt.", **other)
    with pytest.raises(ModelError, match="layer_norm_epsilon"):
        open_checkpoint(tmp_path / "odd.gguf")


def test_the_fit_of_a_card_knows_its_width(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "opt", hidden_size=256, ffn_dim=1024)
    wide = write(tmp_path / "wide", "opt", hidden_size=256, ffn_dim=1 << 16)
    narrow, large = (fit(path, 1 << 30, 128, dry_run=False).choices[0].compute_nbytes for path in (source, wide))
    assert 0 < narrow < large
