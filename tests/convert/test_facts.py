"""Facts that lie: params.json, config.json and their kin with values of the wrong kind are refused in one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import convert, open_checkpoint
from smelt.convert.gguf import read_gguf_model
from smelt.convert.options import OpenOptions
from smelt.errors import FormatError, ModelError, SmeltError
from smelt.formats.gguf import GGUFValue, gguf_layout, open_gguf

OPTIONS = OpenOptions(context_length=128)
NONSENSE = ("abc", -1, 0, 2.5, 10**9, 10**30, True, float("nan"), float("inf"), [1], {"a": {}}, "\ud800")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `meta` and the same model as `hf`."""
    folder = tmp_path_factory.mktemp("facts")
    write_meta(folder / "meta", n_kv_heads=2)
    convert(folder / "meta", folder / "hf", options=OPTIONS)
    return folder


def edited(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a model with other values in one of its JSON files."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text()) | changes
    (target / file).write_text(json.dumps(content))
    return target


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "n_kv_heads"])
def test_params_of_the_wrong_kind_are_refused(models: Path, tmp_path: Path, key: str) -> None:
    for number, value in enumerate(NONSENSE):
        folder = edited(models / "meta", tmp_path / str(number), "params.json", **{key: value})
        with pytest.raises(SmeltError) as caught:
            open_checkpoint(folder)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("norm_eps", "abc"),
        ("norm_eps", float("nan")),
        ("norm_eps", -1),
        ("rope_theta", [1]),
        ("rope_theta", 1e300),
        ("rope_theta", False),
        ("max_seq_len", "2048"),
        ("max_seq_len", 10**12),
        ("vocab_size", {}),
    ],
)
def test_a_param_of_the_wrong_kind_is_named(models: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = edited(models / "meta", tmp_path / "m", "params.json", **{key: value})
    with pytest.raises(ModelError, match=key):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", True),
        ("num_attention_heads", "4"),
        ("num_key_value_heads", 3),
        ("vocab_size", 512.0),
        ("intermediate_size", "192"),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", float("inf")),
        ("max_position_embeddings", 10**12),
        ("tie_word_embeddings", "false"),
        ("initializer_range", float("nan")),
        ("partial_rotary_factor", 0.5),
        ("rope_parameters", "default"),
        ("rope_parameters", {"full_attention": {"rope_theta": 500000.0}}),
        ("rope_parameters", {"rope_theta": 500000.0, "rope_type": "default"}),  # the file's rope_theta says 10000
    ],
)
def test_a_config_that_cannot_be_is_refused(models: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = edited(models / "hf", tmp_path / "m", "config.json", **{key: value})
    with pytest.raises(ModelError):
        open_checkpoint(folder)


def test_default_rope_and_no_quantization_are_read_in_every_spelling(models: Path, tmp_path: Path) -> None:
    for number, changes in enumerate(
        (
            {"rope_scaling": {"rope_type": "default"}, "quantization_config": None},
            {"rope_theta": None, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        )
    ):
        folder = edited(models / "hf", tmp_path / str(number), "config.json", **changes)
        assert open_checkpoint(folder).config == open_checkpoint(models / "hf").config


def test_endless_nesting_is_not_json(models: Path, tmp_path: Path) -> None:
    folder = edited(models / "meta", tmp_path / "m", "params.json")
    (folder / "params.json").write_text("[" * 100_000)
    with pytest.raises(FormatError, match="is not JSON"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "changes",
    [{"added_tokens": 7}, {"merges": [3]}, {"merges": [None]}],
    ids=["added tokens that are a number", "a merge that is a number", "a merge that is null"],
)
def test_a_tokenizer_json_of_the_wrong_kind_is_refused(models: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = edited(models / "hf", tmp_path / "m", "config.json")
    (folder / "tokenizer.model").unlink()
    content = json.loads((folder / "tokenizer.json").read_text())
    part = content["model"] if "merges" in changes else content
    part.update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        open_checkpoint(folder)


def test_chat_templates_with_odd_names_are_passed_over(models: Path, tmp_path: Path) -> None:
    templates = [{"name": ["a"], "template": "x"}, {"name": "default", "template": "y"}]
    folder = edited(models / "hf", tmp_path / "m", "tokenizer_config.json", chat_template=templates)
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None and tokenizer.chat_template == "y"


def test_a_broken_tokenizer_is_named_by_its_path(models: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "other.model"
    wrong.write_text('{"not": "sentencepiece"}')
    for source in ("meta", "hf"):
        with pytest.raises(FormatError, match=r"^\S*other\.model: "):
            open_checkpoint(models / source, OpenOptions(tokenizer=wrong))


def test_a_tokenizer_by_hand_wins_in_a_gguf_file_too(models: Path, tmp_path: Path) -> None:
    bare = OpenOptions(context_length=128, skip_tokenizer=True)
    convert(models / "meta", tmp_path / "m.gguf", options=bare)
    assert open_checkpoint(tmp_path / "m.gguf").tokenizer is None
    given = open_checkpoint(tmp_path / "m.gguf", OpenOptions(tokenizer=models / "hf" / "tokenizer.model")).tokenizer
    assert given is not None and len(given.pieces) == 512


def test_head_sizes_of_their_own_are_told_to_llama_cpp(tmp_path: Path) -> None:
    """llama.cpp takes hidden_size / heads for a head's size unless key_length and value_length say otherwise."""
    transformers = pytest.importorskip("transformers", reason="it writes the model")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 512, "head_dim": 32}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf", options=OpenOptions(skip_tokenizer=True))
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    named = ("rope.dimension_count", "attention.key_length", "attention.value_length")
    assert [metadata[f"llama.{key}"] for key in named] == [32, 32, 32]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.rope.scaling.type", GGUFValue("string", "su")),
        ("llama.rope.scaling.attn_factor", GGUFValue("f32", 2.0)),
        ("llama.attention.sliding_window", GGUFValue("u32", 32)),
        ("llama.final_logit_softcapping", GGUFValue("f32", 30.0)),
        ("llama.attention.key_length", GGUFValue("u32", 32)),
        ("llama.block_count", GGUFValue("string", "2")),
    ],
)
def test_gguf_keys_that_change_the_arithmetic_are_refused(
    models: Path, tmp_path: Path, key: str, value: GGUFValue
) -> None:
    convert(models / "meta", tmp_path / "m.gguf", options=OpenOptions(128, skip_tokenizer=True))
    found = open_gguf(tmp_path / "m.gguf")
    types = {int: "u32", float: "f32", str: "string"}
    metadata = {name: GGUFValue(types[type(v)], v) for name, v in found.metadata.items()} | {key: value}
    specs = list(found.tensors.values())
    layout = gguf_layout(specs, metadata)
    content = bytearray(layout.nbytes)
    for offset, piece in layout.pieces:
        content[offset : offset + len(piece)] = piece
    (tmp_path / "edited.gguf").write_bytes(content)
    with pytest.raises(ModelError, match=key.removeprefix("llama.")):
        read_gguf_model(tmp_path / "edited.gguf", OpenOptions())


def test_weights_that_are_whole_numbers_are_refused_by_name(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "meta", tmp_path / "m")
    path = tmp_path / "m" / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "norm.weight": state["norm.weight"].to(torch.int32)}, path)
    with pytest.raises(ModelError, match=r"norm\.weight \(I32\)"):
        open_checkpoint(tmp_path / "m")


def test_a_file_name_that_is_no_utf8_converts(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"bad\xff")
    try:
        shutil.copytree(models / "hf", folder)
        (folder / "model.safetensors").rename(folder / os.fsdecode(b"mod\xfe.safetensors"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    convert(folder, tmp_path / os.fsdecode(b"out\xff.gguf"))
    told = json.loads((tmp_path / os.fsdecode(b"out\xff.gguf.smelt.json")).read_text())
    assert told["sources"][0]["file"] == os.fsdecode(b"mod\xfe.safetensors")
