"""Hugging Face folders of pytorch_model*.bin: the same model as the safetensors, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from meta_checkpoints import write_meta
from safetensors.torch import load_file
from smelt.api import convert, diff, open_checkpoint
from smelt.convert.inspect import inspect
from smelt.convert.options import OpenOptions
from smelt.errors import FormatError, InputError, ModelError, UnsafePickleError

OPTIONS = OpenOptions(context_length=128)
INDEX = "pytorch_model.bin.index.json"
NAMES = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bin")
    write_meta(folder / "meta", n_kv_heads=2)
    convert(folder / "meta", folder / "hf", options=OPTIONS)
    return folder / "hf"


def as_bin(source: Path, folder: Path, n_shards: int = 1, **options: bool) -> dict[str, torch.Tensor]:
    """The folder with .bin files instead of safetensors."""
    state = load_file(source / "model.safetensors")
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name != "smelt.json":
            (folder / path.name).write_bytes(path.read_bytes())
    if n_shards == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return state
    where = {name: NAMES[number % 2] for number, name in enumerate(state)}
    for shard in NAMES:
        torch.save({name: tensor for name, tensor in state.items() if where[name] == shard}, folder / shard)
    write_index(folder, where, sum(tensor.nbytes for tensor in state.values()))
    return state


def write_index(folder: Path, where: dict[str, str], total: int) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}))


@pytest.mark.parametrize("n_shards", [1, 2])
def test_a_bin_folder_converts_to_the_same_files(hugging_face: Path, tmp_path: Path, n_shards: int) -> None:
    as_bin(hugging_face, tmp_path / "bin", n_shards)
    model = open_checkpoint(tmp_path / "bin")
    assert model.source == "bin" and len(model.files) == (1 if n_shards == 1 else 3)
    assert diff(hugging_face, tmp_path / "bin").equal
    convert(tmp_path / "bin", tmp_path / "a.gguf")
    convert(hugging_face, tmp_path / "b.gguf")
    a, b = open_checkpoint(tmp_path / "a.gguf"), open_checkpoint(tmp_path / "b.gguf")
    assert a.config == b.config and diff(tmp_path / "a.gguf", tmp_path / "b.gguf").equal


def test_a_bin_file_opens_by_its_name(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin")
    assert diff(hugging_face, tmp_path / "bin" / "pytorch_model.bin").equal


def test_safetensors_come_before_bin_files_of_the_same_model(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin")
    (tmp_path / "bin" / "model.safetensors").write_bytes((hugging_face / "model.safetensors").read_bytes())
    assert open_checkpoint(tmp_path / "bin").source == "safetensors"


def test_parameters_and_a_tied_head_in_one_storage_open(hugging_face: Path, tmp_path: Path) -> None:
    state = as_bin(hugging_face, tmp_path / "bin", 2)
    where = json.loads((tmp_path / "bin" / INDEX).read_text())["weight_map"]
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    where["lm_head.weight"] = where["model.embed_tokens.weight"]
    for shard in NAMES:
        found = {name: torch.nn.Parameter(state[name]) for name in state if where[name] == shard}
        torch.save(found, tmp_path / "bin" / shard)
    once = sum(tensor.nbytes for name, tensor in state.items() if name != "lm_head.weight")
    write_index(tmp_path / "bin", where, once)
    config = json.loads((tmp_path / "bin" / "config.json").read_text())
    (tmp_path / "bin" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    convert(tmp_path / "bin", tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


@pytest.mark.parametrize(
    ("shard", "error"),
    [
        ("../evil.bin", FormatError),
        ("/etc/passwd", FormatError),
        ("a/b.bin", FormatError),
        ("..\\evil.bin", FormatError),
        ("evil\0.bin", FormatError),
        ("model.safetensors", FormatError),
        ("missing.bin", FormatError),
        (7, FormatError),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(
    hugging_face: Path, tmp_path: Path, shard: object, error: type[Exception]
) -> None:
    as_bin(hugging_face, tmp_path / "bin", 2)
    torch.save({"x": torch.zeros(1)}, tmp_path / "evil.bin")
    index = json.loads((tmp_path / "bin" / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (tmp_path / "bin" / INDEX).write_text(json.dumps(index))
    with pytest.raises(error, match=r"plain name of a \.bin file|shards are missing"):
        open_checkpoint(tmp_path / "bin")


def test_a_missing_shard_is_named(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin", 2)
    (tmp_path / "bin" / NAMES[1]).unlink()
    with pytest.raises(FormatError, match=rf"1 of 2 shards are missing: {NAMES[1]}"):
        open_checkpoint(tmp_path / "bin")


def test_an_index_and_shards_that_disagree_are_refused(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin", 2)
    index = json.loads((tmp_path / "bin" / INDEX).read_text())
    (tmp_path / "bin" / INDEX).write_text(json.dumps({**index, "metadata": {"total_size": 5}}))
    with pytest.raises(FormatError, match="total_size is 5"):
        open_checkpoint(tmp_path / "bin")
    lost = index["weight_map"].pop("model.norm.weight")
    (tmp_path / "bin" / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match=rf"unexpected: model\.norm\.weight in {lost}"):
        open_checkpoint(tmp_path / "bin")
    (tmp_path / "bin" / INDEX).write_text("<html>")
    with pytest.raises(InputError):
        open_checkpoint(tmp_path / "bin")


def test_wrong_shapes_are_listed(hugging_face: Path, tmp_path: Path) -> None:
    state = as_bin(hugging_face, tmp_path / "bin")
    state["model.norm.weight"] = torch.zeros(3).half()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[3\], wanted \[64\]"):
        open_checkpoint(tmp_path / "bin")
    assert inspect(tmp_path / "bin").problems and inspect(tmp_path / "bin").format == "bin"


def test_a_pickle_that_would_run_code_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, (f"touch {tmp_path}/canary",)

    state = as_bin(hugging_face, tmp_path / "bin")
    torch.save({**state, "evil": Evil()}, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(UnsafePickleError, match="system"):
        open_checkpoint(tmp_path / "bin")
    assert not (tmp_path / "canary").exists()


def test_the_format_before_torch_1_6_is_refused_with_a_way_out(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="save"):
        open_checkpoint(tmp_path / "bin")


def test_a_file_cut_short_is_refused(hugging_face: Path, tmp_path: Path) -> None:
    as_bin(hugging_face, tmp_path / "bin")
    path = tmp_path / "bin" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError):
        open_checkpoint(tmp_path / "bin")
