"""A byte-level vocabulary goes with its model through every dialect, and comes back byte for byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from smelt.api import convert, open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.convert.tokenizer_gguf import vocabulary_notes
from smelt.errors import ModelError

from ..meta_checkpoints import write_meta
from .byte_level import trained_json, trained_ranks

OPTIONS = OpenOptions(context_length=128)
SETTINGS = b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>",\t"chat_template": "{{ x }}"}'


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama 3.0 folder: 700 ranks and 256 special tokens."""
    folder = tmp_path_factory.mktemp("llama3") / "meta"
    write_meta(folder, vocab=956, embedding_dim=0, tokenizer=None, extra_params={"rope_theta": 500000.0})
    (folder / "tokenizer.model").write_bytes(trained_ranks())
    return folder


def test_llama_3_goes_through_every_dialect_and_comes_back(llama3: Path, tmp_path: Path) -> None:
    convert(llama3, tmp_path / "a.gguf", options=OPTIONS)
    convert(tmp_path / "a.gguf", tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "b.gguf")
    convert(tmp_path / "b.gguf", tmp_path / "meta", to="meta")
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == trained_ranks()
    wanted = open_checkpoint(llama3, OPTIONS).tokenizer
    assert wanted is not None and wanted.pieces[709][0] == "<|eot_id|>"
    for name in ("a.gguf", "hf", "b.gguf", "meta"):
        found = open_checkpoint(tmp_path / name).tokenizer
        assert found is not None
        assert (found.pieces, found.merges, found.pre, found.bos_id) == (wanted.pieces, wanted.merges, "llama-bpe", 700)
        assert found.encode("  if x == 12345:\n\t日本") == wanted.encode("  if x == 12345:\n\t日本")


def test_a_folders_tokenizer_files_come_back_from_gguf_byte_for_byte(llama3: Path, tmp_path: Path) -> None:
    convert(llama3, tmp_path / "hf", options=OPTIONS)
    files = {
        "tokenizer.json": trained_json("qwen2"),
        "tokenizer_config.json": SETTINGS,
        "generation_config.json": b"{}\n",
    }
    for name, content in files.items():
        (tmp_path / "hf" / name).write_bytes(content)
    (tmp_path / "hf" / "special_tokens_map.json").unlink()
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    kept = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir() if path.name in files}
    assert kept == files and not (tmp_path / "back" / "special_tokens_map.json").exists()
    tokenizer = open_checkpoint(tmp_path / "m.gguf").tokenizer
    assert tokenizer is not None and "NFC" in vocabulary_notes(tokenizer)[0]


def test_unknown_rules_stop_a_gguf_target_and_pre_or_skip_tokenizer_let_it_pass(llama3: Path, tmp_path: Path) -> None:
    convert(llama3, tmp_path / "hf", options=OPTIONS)
    content = json.loads((tmp_path / "hf" / "tokenizer.json").read_bytes())
    content["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"--pre NAME .*--skip-tokenizer"):
        convert(tmp_path / "hf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    with pytest.raises(ModelError, match="would change the ids"):
        convert(tmp_path / "hf", tmp_path / "m.gguf", options=OpenOptions(pre="bloom"))
    convert(
        tmp_path / "hf", tmp_path / "proven.gguf", options=OpenOptions(pre="llama-bpe")
    )  # another way to say the same
    result = convert(tmp_path / "hf", tmp_path / "m.gguf", options=OpenOptions(pre="superbpe"))
    assert any("not compared" in note for note in result.notes)
    found = open_checkpoint(tmp_path / "m.gguf").tokenizer
    assert found is not None and found.pre == "superbpe"
    convert(tmp_path / "hf", tmp_path / "bare.gguf", options=OpenOptions(skip_tokenizer=True))
    assert open_checkpoint(tmp_path / "bare.gguf").tokenizer is None


def test_a_tokenizer_json_may_be_named_by_hand(llama3: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_bytes(trained_json("bloom"))
    options = OpenOptions(context_length=128, tokenizer=tmp_path / "other.json")
    convert(llama3, tmp_path / "m.gguf", options=options)
    found = open_checkpoint(tmp_path / "m.gguf").tokenizer
    assert found is not None and (found.pre, len(found.pieces)) == ("bloom", 702)
