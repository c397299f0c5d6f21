"""Conversions: bit-exact at the stored dtype, back to the same bytes, whatever the shards; and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import convert, diff, open_checkpoint, quantize
from smelt.convert.options import OpenOptions
from smelt.errors import InputError, ModelError, UsageError

OPTIONS = OpenOptions(context_length=128)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_format_and_shard_count_holds_equal_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    for shards in (1, 4):
        write_meta(tmp_path / f"meta{shards}", n_shards=shards, n_kv_heads=4, dtype=dtype)
    convert(tmp_path / "meta4", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "meta4", tmp_path / "model.gguf", options=OPTIONS)
    for other in ("meta4", "hf", "model.gguf"):
        result = diff(tmp_path / "meta1", tmp_path / other)
        assert result.equal and result.tensors == 21


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_safetensors_to_gguf_and_back_gives_the_same_files(tmp_path: Path, dtype: torch.dtype) -> None:
    write_meta(tmp_path / "meta", n_shards=2, n_kv_heads=2, dtype=dtype)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "hf", tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back")
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "back").iterdir())
    for name in names:
        if name != "smelt.json":  # the manifest names another source
            assert (tmp_path / "hf" / name).read_bytes() == (tmp_path / "back" / name).read_bytes(), name


def test_shards_of_safetensors_open_and_hold_equal_weights(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    result = convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS, max_shard_nbytes=60_000)
    assert sum(path.suffix == ".safetensors" for path in result.files) > 2
    assert diff(tmp_path / "meta", tmp_path / "hf").equal


def test_diff_names_the_one_tensor_with_a_flipped_bit(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    convert(tmp_path / "meta", tmp_path / "a.gguf", options=OPTIONS)
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    tensor = open_checkpoint(tmp_path / "b.gguf")
    from smelt.formats.gguf import open_gguf

    place = open_gguf(tmp_path / "b.gguf").tensors["blk.1.ffn_up.weight"]
    with open(tmp_path / "b.gguf", "r+b") as file:
        file.seek(place.offset + 100)
        byte = file.read(1)[0]
        file.seek(place.offset + 100)
        file.write(bytes([byte ^ 1]))
    result = diff(tmp_path / "a.gguf", tmp_path / "b.gguf")
    assert [d.name for d in result.different] == ["model.layers.1.mlp.up_proj.weight"]
    assert result.different[0].values == 1
    assert tensor.parameters > 0


@pytest.mark.parametrize("dtype", ["bf16", "q8_0"])
def test_diff_tells_rounded_weights_from_equal_ones(tmp_path: Path, dtype: str) -> None:
    write_meta(tmp_path / "meta", dim=64)
    if dtype == "bf16":
        convert(tmp_path / "meta", tmp_path / "b.gguf", dtype="bf16", options=OPTIONS)
    else:
        quantize(tmp_path / "meta", tmp_path / "b.gguf", "q8_0", options=OPTIONS)
    result = diff(tmp_path / "meta", tmp_path / "b.gguf")
    assert len(result.different) == 16  # every matrix; norms are F32 in GGUF and equal
    assert all(d.values > 0 and np.isfinite(d.largest) for d in result.different)


def test_a_rounding_dtype_is_said_in_the_notes(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dtype=torch.float16)
    result = convert(tmp_path / "meta", tmp_path / "hf", dtype="bf16", options=OPTIONS)
    assert any("rounded" in note for note in result.notes)
    exact = convert(tmp_path / "meta", tmp_path / "f32", dtype="f32", options=OPTIONS)
    assert not any("rounded" in note for note in exact.notes)


def test_tied_heads_are_written_once_and_read_as_tied(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", tied=True)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    model = open_checkpoint(tmp_path / "hf")
    assert config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in model.tensors
    assert diff(tmp_path / "meta", tmp_path / "hf").equal


def test_a_head_that_a_config_wrongly_ties_stops_the_run(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(InputError, match=r"tie_word_embeddings is true, yet"):
        convert(tmp_path / "hf", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_the_tokenizer_may_lie_in_the_parent_folder(tmp_path: Path) -> None:
    write_meta(tmp_path / "7B", tokenizer="parent")
    convert(tmp_path / "7B", tmp_path / "hf", options=OPTIONS)
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()


def test_gguf_without_a_tokenizer_is_refused_unless_asked_for(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", tokenizer=None)
    with pytest.raises(ModelError, match=r"--skip-tokenizer"):
        convert(tmp_path / "meta", tmp_path / "model.gguf", options=OPTIONS)
    convert(tmp_path / "meta", tmp_path / "model.gguf", options=OpenOptions(128, skip_tokenizer=True))
    assert diff(tmp_path / "meta", tmp_path / "model.gguf").equal


def test_an_unknown_context_length_is_an_error_that_names_the_option(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    with pytest.raises(ModelError, match=r"--context-length"):
        convert(tmp_path / "meta", tmp_path / "hf")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", n_shards=4)
    (tmp_path / "meta" / "consolidated.02.pth").unlink()
    with pytest.raises(InputError, match=r"consolidated\.02\.pth is missing"):
        convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)


def test_shards_of_another_model_are_refused(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", n_shards=2)
    write_meta(tmp_path / "b", n_shards=2, dim=32)
    shutil.copy(tmp_path / "b" / "consolidated.01.pth", tmp_path / "a" / "consolidated.01.pth")
    with pytest.raises(ModelError, match=r"shards disagree|do not fit"):
        convert(tmp_path / "a", tmp_path / "hf", options=OPTIONS)


def test_every_unmapped_tensor_is_listed(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    path = tmp_path / "meta" / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    state |= {"layers.0.attention.wq.bias": torch.zeros(64), "adapter.x": torch.zeros(2)}
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"2 tensors have no place.*adapter\.x, layers\.0\.attention\.wq\.bias"):
        convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)


def test_two_models_in_one_folder_are_an_error_that_lists_both(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    shutil.copy(tmp_path / "hf" / "model.safetensors", tmp_path / "meta" / "model.safetensors")
    with pytest.raises(InputError, match=r"more than one model: meta .* and safetensors"):
        open_checkpoint(tmp_path / "meta")


@pytest.mark.parametrize("target", ["meta", "meta/out.gguf", "link"])
def test_a_target_that_is_the_input_is_refused(tmp_path: Path, target: str) -> None:
    write_meta(tmp_path / "meta")
    (tmp_path / "link").symlink_to(tmp_path / "meta")
    before = sorted((tmp_path / "meta").iterdir())
    with pytest.raises(UsageError):
        convert(
            tmp_path / "meta", tmp_path / "link" if target == "link" else tmp_path / "meta", options=OPTIONS, force=True
        )
    assert sorted((tmp_path / "meta").iterdir()) == before


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model", "consolidated.00.pth"])
def test_force_never_replaces_a_file_of_the_source(tmp_path: Path, name: str) -> None:
    write_meta(tmp_path / "meta")
    before = (tmp_path / "meta" / name).read_bytes()
    with pytest.raises(UsageError, match="is the input"):
        convert(tmp_path / "meta", tmp_path / "meta" / name, to="gguf", options=OPTIONS, force=True)
    assert (tmp_path / "meta" / name).read_bytes() == before


def test_force_never_replaces_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UsageError, match=r"cat\.jpg but no model"):
        convert(tmp_path / "meta", tmp_path / "photos", options=OPTIONS, force=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"meow"


def test_an_existing_target_is_kept_without_force(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    (tmp_path / "model.gguf").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"--force"):
        convert(tmp_path / "meta", tmp_path / "model.gguf", options=OPTIONS)
    assert (tmp_path / "model.gguf").read_bytes() == b"precious"
    convert(tmp_path / "meta", tmp_path / "model.gguf", options=OPTIONS, force=True)
    assert diff(tmp_path / "meta", tmp_path / "model.gguf").equal
