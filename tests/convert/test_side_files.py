"""The files beside the weights: whichever formats lie between, they come back byte for byte, and nothing is lost by the way."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from meta_checkpoints import write_meta
from safetensors.torch import load_file, save_file
from smelt.api import convert, diff, open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.convert.tokenizer_pre import RULES
from smelt.errors import ModelError

from .byte_level import trained_json
from .small_models import rewritten

OPTIONS = OpenOptions(context_length=128)
WITHOUT = OpenOptions(context_length=128, skip_tokenizer=True)
GENERATION = b'{"do_sample":\ttrue, "x": 1e-3}'
TEMPLATE = "{% for m in messages %}\r\n{{ m }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with files in spellings that no program of ours would choose."""
    where = tmp_path_factory.mktemp("side")
    write_meta(where / "meta", n_kv_heads=2)
    convert(where / "meta", where / "hf", options=OPTIONS)
    weights = where / "hf" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt"})  # as transformers writes it
    settings = json.loads((where / "hf" / "tokenizer_config.json").read_text())
    settings |= {"chat_template": "{{ other }}", "model_max_length": 10**30}
    (where / "hf" / "tokenizer_config.json").write_text(json.dumps(settings, indent=3))
    (where / "hf" / "generation_config.json").write_bytes(GENERATION)
    (where / "hf" / "chat_template.jinja").write_text(TEMPLATE, newline="")
    (where / "hf" / "added_tokens.json").write_text("{ }")
    return where / "hf"


def contents(path: Path) -> dict[str, bytes]:
    """Every file but the manifest and the weights, whose header says more on the way."""
    skipped = ("smelt.json", "model.safetensors")
    return {file.name: file.read_bytes() for file in path.iterdir() if file.name not in skipped}


def target(folder: Path, kind: str, step: int) -> Path:
    return folder / (f"{step}.gguf" if kind == "gguf" else f"{step}-{kind}")


@pytest.mark.parametrize("way", [*itertools.permutations(("meta", "gguf")), ("meta",), ("gguf",)], ids="-".join)
def test_every_side_file_comes_back(folder: Path, tmp_path: Path, way: tuple[str, ...]) -> None:
    source = folder
    for step, kind in enumerate((*way, "safetensors")):
        convert(source, target(tmp_path, kind, step), to=kind)
        source = target(tmp_path, kind, step)
    assert contents(source) == contents(folder)
    assert diff(source, folder).equal


@pytest.mark.parametrize("way", ["meta", "gguf", "safetensors"])
def test_without_the_tokenizer_its_files_stay_behind_and_the_others_go(folder: Path, tmp_path: Path, way: str) -> None:
    convert(folder, target(tmp_path, way, 0), to=way, options=WITHOUT)
    convert(target(tmp_path, way, 0), tmp_path / "back", options=WITHOUT)
    assert set(contents(tmp_path / "back")) == {"config.json", "generation_config.json"}
    assert (tmp_path / "back" / "generation_config.json").read_bytes() == GENERATION


def test_what_a_gguf_of_others_says_of_its_tokenizer_goes_through_meta(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf")
    others = rewritten(tmp_path / "m.gguf", tmp_path / "others.gguf", "smelt.")
    convert(others, tmp_path / "straight")
    convert(others, tmp_path / "meta", to="meta")
    convert(tmp_path / "meta", tmp_path / "round")
    assert contents(tmp_path / "round") == contents(tmp_path / "straight")
    settings = json.loads((tmp_path / "round" / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == TEMPLATE
    tokenizer = open_checkpoint(tmp_path / "meta").tokenizer
    assert tokenizer is not None and tokenizer.chat_template == TEMPLATE


def test_an_edited_template_wins_and_the_other_files_stay(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "m.gguf")
    half = rewritten(tmp_path / "m.gguf", tmp_path / "half.gguf", "smelt.files.chat")
    edited = rewritten(half, tmp_path / "edited.gguf", "tokenizer.chat_template")
    convert(edited, tmp_path / "back")
    assert (tmp_path / "back" / "generation_config.json").read_bytes() == GENERATION
    assert not (tmp_path / "back" / "chat_template.jinja").exists()
    assert "chat_template" not in json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())


def test_files_beside_params_json_that_smelt_did_not_put_there_go_along(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    (tmp_path / "meta" / "generation_config.json").write_bytes(GENERATION)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "meta", tmp_path / "m.gguf", options=OPTIONS)
    convert(tmp_path / "m.gguf", tmp_path / "again", to="meta")
    for name in ("hf", "again"):
        assert (tmp_path / name / "generation_config.json").read_bytes() == GENERATION
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(contents(tmp_path / "hf"))


def test_a_meta_folder_without_any_gets_none(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    convert(tmp_path / "meta", tmp_path / "m.gguf", options=OPTIONS)
    convert(tmp_path / "m.gguf", tmp_path / "again", to="meta")
    names = {"params.json", "tokenizer.model", "consolidated.00.pth", "checklist.chk", "smelt.config.json"}
    assert set(contents(tmp_path / "again")) == names


HOSTILE = r"(a+a+)+y|"  # backtracks without end on a row of a's, which the library answers with a panic


def hostile(folder: Path, pattern: str) -> Path:
    write_meta(folder / "meta", vocab=1024, tokenizer=None)
    convert(folder / "meta", folder / "hf", options=WITHOUT)
    content: dict[str, Any] = json.loads(trained_json("gpt-2"))
    usual = RULES["gpt-2"].splits[0][1]
    split = {"type": "Split", "pattern": {"Regex": pattern + usual}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
    (folder / "hf" / "tokenizer.json").write_text(json.dumps(content))
    return folder / "hf"


def test_a_regular_expression_without_end_is_an_error(tmp_path: Path) -> None:
    tokenizer = open_checkpoint(hostile(tmp_path, HOSTILE), OpenOptions(pre="gpt-2")).tokenizer
    assert tokenizer is not None
    before = os.fstat(2)
    with pytest.raises(ModelError, match=r"gives up on its regular expression: 'Onig.*leave the vocabulary out"):
        tokenizer.encode("a" * 20_000)
    assert tokenizer.encode("bc") and os.path.samestat(os.fstat(2), before)  # stderr is what it was


@pytest.mark.parametrize(
    ("pattern", "says"), [(HOSTILE, "gives up on its regular"), ("(|", "the tokenizers library refuses it")]
)
def test_the_command_line_says_it_in_one_line(tmp_path: Path, pattern: str, says: str) -> None:
    source = hostile(tmp_path, pattern)
    command = [sys.executable, "-P", "-m", "smelt", "convert", str(source), str(tmp_path / "m.gguf"), "--pre", "gpt-2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 3, found.stderr
    assert found.stderr.startswith("smelt: error: ") and found.stderr.count("\n") == 1 and says in found.stderr
    assert not (tmp_path / "m.gguf").exists()
