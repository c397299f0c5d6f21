"""SentencePiece vocabularies unlike LLaMA's: Gemma's, with pieces cut out, and Code Llama's, with pieces that tie."""

from __future__ import annotations

import argparse
import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from smelt.convert.tokenizer import Tokenizer, read_sentencepiece
from smelt.convert.tokenizer_bpe import json_encoder
from smelt.convert.tokenizer_files import hugging_face_files
from smelt.convert.tokenizer_folder import read_files
from smelt.convert.tokenizer_gguf import gguf_vocabulary, read_gguf_vocabulary
from smelt.convert.tokenizer_json import tokenizer_json
from smelt.convert.tokenizer_proof import HARD_TEXTS
from smelt.errors import ModelError
from smelt.formats.gguf import GGUFValue, gguf_layout
from smelt.formats.sentencepiece import CONTROL, NORMAL, USER_DEFINED, decode_model, encode_model

sentencepiece = pytest.importorskip("sentencepiece", reason="trains the vocabulary")

LINES = Path(argparse.__file__).read_text(encoding="utf-8").splitlines()
CUT_OUT = ["<unused0>", "<table>", "\n", "\n\n", "\n\n\n", "\t\t", "▁▁", "▁▁▁", "▁▁▁▁▁"]
INFILLING = ["▁<PRE", "▁<SUF", "▁<MID", "▁<EOT", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


def train(**options: Any) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*LINES, *["<PRE> <SUF> <MID> <EOT>"] * 20]),
        model_writer=out,
        vocab_size=600,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.99995,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def gemma() -> Tokenizer:
    content = train(
        user_defined_symbols=CUT_OUT,
        control_symbols=["<start_of_turn>", "<end_of_turn>"],
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
    )
    return read_sentencepiece(content)


@pytest.fixture(scope="module")
def code_llama() -> Tokenizer:
    model = decode_model(train())
    pieces = (*model.pieces, *((text, 0.0, NORMAL) for text in INFILLING))
    return read_sentencepiece(encode_model(replace(model, pieces=pieces)))


def texts(seed: int) -> list[str]:
    source = random.Random(seed)
    parts = [*CUT_OUT, *INFILLING, " ", "   ", "<", "PRE", ">", "table", "x", "é", "日", "return", "    ", "\n"]
    mixed = ["".join(source.choice(parts) for _ in range(source.randint(0, 12))) for _ in range(1500)]
    return [*LINES[:300], *HARD_TEXTS, *mixed]


def test_gemmas_facts_are_read(gemma: Tokenizer) -> None:
    types = {text: type_ for text, _, type_ in gemma.pieces}
    assert (types["<table>"], types["▁▁"], types["<end_of_turn>"]) == (USER_DEFINED, USER_DEFINED, CONTROL)
    assert (gemma.pad_id, gemma.eos_id, gemma.bos_id, gemma.unk_id) == (0, 1, 2, 3)
    assert not gemma.add_space_prefix
    assert gemma.pieces[gemma.special_ids["eot"]][0] == "<end_of_turn>"


@pytest.mark.parametrize("kind", ["gemma", "code_llama"])
def test_tokenizer_json_gives_sentencepieces_ids(kind: str, request: pytest.FixtureRequest) -> None:
    source: Tokenizer = request.getfixturevalue(kind)
    fast = json_encoder(tokenizer_json(source))
    for text in texts(0):
        assert fast(text) == source.encode(text), repr(text)


@pytest.mark.parametrize("kind", ["gemma", "code_llama"])
def test_the_gguf_vocabulary_gives_sentencepieces_ids(kind: str, request: pytest.FixtureRequest) -> None:
    source: Tokenizer = request.getfixturevalue(kind)
    metadata = {key: value.value for key, value in gguf_vocabulary(source, 640).items()}
    assert read_gguf_vocabulary(metadata) == source
    bare = read_gguf_vocabulary({key: value for key, value in metadata.items() if not key.startswith("smelt.")})
    assert bare.files == {} and bare.pieces == source.pieces
    for text in texts(1):
        assert bare.encode(text) == source.encode(text), repr(text)


@pytest.mark.parametrize("kind", ["gemma", "code_llama"])
def test_llama_cpp_gives_sentencepieces_ids(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="tokenizes with the GGUF vocabulary")
    source: Tokenizer = request.getfixturevalue(kind)
    keys = {"general.architecture": GGUFValue("string", "llama"), **gguf_vocabulary(source, len(source.pieces))}
    layout = gguf_layout([], keys)
    (tmp_path / "v.gguf").write_bytes(layout.pieces[0][1].ljust(layout.nbytes, b"\0"))
    judge = llama_cpp.Llama(str(tmp_path / "v.gguf"), vocab_only=True, verbose=False)
    for text in (*LINES, *(text for text in HARD_TEXTS if text and "▁" not in text)):
        assert judge.tokenize(text.encode(), add_bos=False, special=False) == source.encode(text), repr(text)


def test_code_llamas_marks_have_their_roles_in_gguf(code_llama: Tokenizer) -> None:
    metadata = gguf_vocabulary(code_llama, 608)
    roles = ("fim_pre", "fim_suf", "fim_mid", "eot")
    assert [metadata[f"tokenizer.ggml.{role}_token_id"].value for role in roles] == [604, 605, 606, 607]
    assert code_llama.encode("<PRE>") == [604]


def test_gemmas_folder_alone_is_read_back(gemma: Tokenizer) -> None:
    files = hugging_face_files(gemma, 2048)
    back = read_files({name: content for name, content in files.items() if name != "tokenizer.model"}, {}, Path("m"))
    assert back is not None
    assert [(text, type_) for text, _, type_ in back.pieces] == [(text, type_) for text, _, type_ in gemma.pieces]
    metadata = {key: value.value for key, value in gguf_vocabulary(back, 600).items()}
    bare = read_gguf_vocabulary({key: value for key, value in metadata.items() if not key.startswith("smelt.")})
    for text in texts(2):
        assert bare.encode(text) == gemma.encode(text), repr(text)


def test_a_piece_of_a_thousand_characters_is_refused(gemma: Tokenizer) -> None:
    with pytest.raises(ModelError, match="1000 characters"):
        tokenizer_json(replace(gemma, pieces=(*gemma.pieces, ("x" * 1000, -1.0, NORMAL))))


def test_a_vocabulary_that_changes_ids_is_not_written(gemma: Tokenizer) -> None:
    rescored = tuple((text, -score if len(text) == 2 else score, type_) for text, score, type_ in gemma.pieces)
    with pytest.raises(ModelError, match=r"GGUF vocabulary would change the ids of .* in the source") as caught:
        gguf_vocabulary(replace(gemma, pieces=rescored), 600)
    assert "\n" not in str(caught.value)
