"""Ways round the formats for more shards and dtypes than test_matrix.py has, and for parts, blocks and files beside."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from meta_checkpoints import write_meta
from safetensors.torch import load_file, save_file
from smelt.api import convert, diff, open_checkpoint, quantize
from smelt.convert.options import OpenOptions

OPTIONS = OpenOptions(context_length=128)
KINDS = ("meta", "safetensors", "gguf")
TEXT = "def main():\n    return 'a  b' + str(42) + \"é\"\n\t# end"

# every vocabulary that is written is proven, which takes longer than all the rest: one shape in four has one
SHAPES = [
    pytest.param(
        {"n_shards": shards, "n_kv_heads": kv, "dtype": dtype, "tokenizer": "folder" if shards == 4 and kv else None},
        id=f"{shards}shard-{name}-{dtype}",
    )
    for shards in (1, 4)
    for kv, name in ((None, "mha"), (4, "gqa"))
    for dtype in (torch.float16, torch.bfloat16)
]


def target(folder: Path, kind: str, step: int) -> Path:
    return folder / (f"{step}.gguf" if kind == "gguf" else f"{step}-{kind}")


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a folder but the manifest, which names another source."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name != "smelt.json"}


def weights(path: Path) -> dict[str, bytes]:
    """What must come back to the byte: of a folder its weights, params.json and tokenizer.model; of a file its tensors."""
    if path.is_dir():
        return {
            name: raw
            for name, raw in contents(path).items()
            if name.endswith((".pth", "ensors", "params.json", "model"))
        }
    return {
        name: tensor.read(0, tensor.matrix_shape[0]).tobytes() for name, tensor in open_checkpoint(path).tensors.items()
    }


def assert_same_model(first: Path, second: Path, *, tokenizer: bool = True) -> None:
    one, two = open_checkpoint(first), open_checkpoint(second)
    assert one.config == two.config
    assert (one.tokenizer is not None) == (two.tokenizer is not None) == tokenizer
    if one.tokenizer is not None and two.tokenizer is not None:
        assert one.tokenizer.encode(TEXT) == two.tokenizer.encode(TEXT)
        assert one.tokenizer.model_file() == two.tokenizer.model_file()
    assert {name: tensor.dtype for name, tensor in one.tensors.items() if len(tensor.shape) > 1} == {
        name: tensor.dtype for name, tensor in two.tensors.items() if len(tensor.shape) > 1
    }
    assert diff(first, second).equal


@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_round_three_formats_ends_where_it_began(tmp_path: Path, shape: dict[str, object]) -> None:
    original = write_meta(tmp_path / "original", dim=64, n_heads=8, **shape)
    options = OpenOptions(skip_tokenizer=original.tokenizer is None)
    for kind in KINDS:
        convert(tmp_path / "original", target(tmp_path, kind, 0), to=kind, options=replace(options, context_length=128))
    for first, second, third in itertools.permutations(KINDS):
        way = tmp_path / f"{first}-{second}"
        way.mkdir()
        source = target(tmp_path, first, 0)
        for step, kind in enumerate((second, third, first), 1):
            convert(source, target(way, kind, step), to=kind, options=options)
            source = target(way, kind, step)
        assert weights(source) == weights(target(tmp_path, first, 0)), (first, second, third)
        assert_same_model(source, target(tmp_path, first, 0), tokenizer=original.tokenizer is not None)
    assert (target(tmp_path, "meta", 0) / "params.json").read_bytes() == (original.folder / "params.json").read_bytes()
    if original.tokenizer is not None:
        assert (target(tmp_path, "meta", 0) / "tokenizer.model").read_bytes() == original.tokenizer.read_bytes()


def test_a_hugging_face_folder_comes_back_from_meta_with_all_its_files(tiny_llama: Path, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "hf", options=OpenOptions(context_length=512))
    (tmp_path / "hf" / "chat_template.jinja").write_text("{{ messages }}")
    config = (
        (tmp_path / "hf" / "config.json").read_text().replace('"initializer_range": 0.02', '"initializer_range": 0.5')
    )
    (tmp_path / "hf" / "config.json").write_text(config)
    weights = tmp_path / "hf" / "model.safetensors"
    save_file(load_file(weights), weights, {"format": "pt"})  # as if smelt had never seen it
    convert(tmp_path / "hf", tmp_path / "meta", to="meta", n_shards=4)
    convert(tmp_path / "meta", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "hf")
    assert open_checkpoint(tmp_path / "meta").tokenizer.chat_template == "{{ messages }}"


@pytest.mark.parametrize("changed", ["tokenizer_config.json", "chat_template.jinja", "generation_config.json"])
def test_files_that_smelt_made_are_the_users_once_one_of_them_is_touched(
    tiny_llama: Path, tmp_path: Path, changed: str
) -> None:
    convert(tiny_llama, tmp_path / "hf", options=OpenOptions(context_length=512))
    convert(tmp_path / "hf", tmp_path / "untouched", to="meta")
    assert not (tmp_path / "untouched" / "tokenizer.json").exists()
    path = tmp_path / "hf" / changed
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n")
    convert(tmp_path / "hf", tmp_path / "touched", to="meta")
    convert(tmp_path / "touched", tmp_path / "back")
    for file in (tmp_path / "hf").glob("*.j*"):
        if file.name not in ("smelt.json", "config.json"):
            assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("to", KINDS)
def test_a_quantized_source_is_decoded_by_dtype(tmp_path: Path, to: str) -> None:
    write_meta(tmp_path / "original", dim=64)
    quantize(tmp_path / "original", tmp_path / "q.gguf", "q8_0", options=OPTIONS)
    convert(tmp_path / "q.gguf", target(tmp_path, to, 1), to=to, dtype="f32")
    assert diff(tmp_path / "q.gguf", target(tmp_path, to, 1)).equal


@pytest.mark.long
@pytest.mark.parametrize(
    "scheme",
    [
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "q2_k",
        "q3_k_m",
        "q4_k_m",
        "q6_k",
        "iq4_nl",
        "iq4_xs",
        "iq3_s",
        "tq1_0",
        "tq2_0",
        "nvfp4",
    ],
)
def test_every_kind_of_block_is_decoded_into_a_meta_folder(tmp_path: Path, scheme: str) -> None:
    write_meta(tmp_path / "original", dim=256, n_layers=1)
    quantize(tmp_path / "original", tmp_path / "q.gguf", scheme, options=OPTIONS)
    convert(tmp_path / "q.gguf", tmp_path / "meta", to="meta", dtype="f32", n_shards=2)
    assert diff(tmp_path / "q.gguf", tmp_path / "meta").equal


@pytest.mark.parametrize("to", ["meta", "safetensors"])
def test_blocks_that_a_format_cannot_hold_ask_for_a_dtype(tmp_path: Path, to: str) -> None:
    from smelt.errors import UsageError

    write_meta(tmp_path / "original", dim=64)
    quantize(tmp_path / "original", tmp_path / "q.gguf", "q8_0", options=OPTIONS)
    with pytest.raises(UsageError, match=f"{to} cannot hold 16 tensors.*--dtype f16"):
        convert(tmp_path / "q.gguf", tmp_path / "out", to=to)


def test_a_gguf_in_parts_holds_an_equal_model(tmp_path: Path) -> None:
    write_meta(tmp_path / "original", n_shards=2)
    convert(tmp_path / "original", tmp_path / "whole.gguf", options=OPTIONS)
    result = convert(tmp_path / "original", tmp_path / "parts", to="gguf", max_shard_nbytes=100_000, options=OPTIONS)
    names = sorted(path.name for path in result.files if path.suffix == ".gguf")
    assert names == [f"parts-{i:05d}-of-{len(names):05d}.gguf" for i in range(1, len(names) + 1)] and len(names) > 2
    assert_same_model(tmp_path / "whole.gguf", tmp_path / "parts")
    convert(tmp_path / "parts", tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_llama_cpp_opens_a_gguf_in_parts(tiny_llama: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    result = convert(
        tiny_llama, tmp_path / "p", to="gguf", max_shard_nbytes=1_000_000, options=OpenOptions(context_length=512)
    )
    first = min(path for path in result.files if path.suffix == ".gguf")
    assert "-00001-of-" in first.name
    client = llama_cpp.Llama(str(first), n_ctx=32, verbose=False)
    client.eval([1, 5, 6])
    assert client.n_tokens == 3


def test_parts_of_a_gguf_are_a_folder(tmp_path: Path) -> None:
    from smelt.errors import UsageError

    write_meta(tmp_path / "original")
    with pytest.raises(UsageError, match="folder of GGUF parts"):
        convert(tmp_path / "original", tmp_path / "m.gguf", max_shard_nbytes=1000, options=OPTIONS)


def test_a_gguf_made_into_its_models_folder_leaves_it_what_it_was(tmp_path: Path) -> None:
    write_meta(tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "original" / "small.gguf", options=OPTIONS)
    assert open_checkpoint(tmp_path / "original", OPTIONS).source == "meta"
    assert diff(tmp_path / "original", tmp_path / "original" / "small.gguf").equal
    (tmp_path / "original" / "small.gguf.smelt.json").unlink()
    from smelt.errors import InputError

    with pytest.raises(InputError, match="more than one model"):
        open_checkpoint(tmp_path / "original")
