from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smelt.convert.tokenizer import MODEL_FILE, Tokenizer, read_sentencepiece
from smelt.convert.tokenizer_files import hugging_face_files
from smelt.convert.tokenizer_folder import read_hugging_face
from smelt.convert.tokenizer_gguf import gguf_vocabulary, read_gguf_vocabulary
from smelt.convert.tokenizer_json import merges_of, tokenizer_json
from smelt.dtypes import F32
from smelt.errors import FormatError, ModelError
from smelt.formats.checkpoint import TensorSpec
from smelt.formats.gguf import GGUFArray, GGUFValue, gguf_layout, open_gguf
from smelt.formats.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    decode_model,
    encode_model,
)
from smelt.formats.transaction import Transaction

sentencepiece = pytest.importorskip("sentencepiece", reason="trains the vocabulary")

LINES = Path(argparse.__file__).read_text(encoding="utf-8").splitlines()
HARD = [
    *(
        "",
        " ",
        "▁",
        "▁▁ ▁",
        " ▁",
        "\t\tx",
        "a\r\nb",
        "\x00\x01\x1b\x7f",
        "é日本語",
        "🙂👨‍👩‍👧",
        "x\u2028y\ufeff",
        "ﬁ Å",
    ),
    *(" " * n for n in (2, 3, 5, 7, 15, 16, 17, 31, 33, 100, 1000)),
    *(" " * n + "return x" for n in range(1, 40)),
    *("x" + " " * n for n in (1, 2, 9)),
    *("=" * n for n in (2, 3, 7, 79)),
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small vocabulary as LLaMA's was made: BPE, byte fallback, no normalization."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
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
    )
    return out.getvalue()


@pytest.fixture(scope="session")
def tokenizer(trained: bytes) -> Tokenizer:
    return read_sentencepiece(trained)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def through_gguf(tokenizer: Tokenizer, n_vocab: int, path: Path) -> Mapping[str, Any]:
    metadata = {"general.architecture": GGUFValue("string", "llama"), **gguf_vocabulary(tokenizer, n_vocab)}
    layout = gguf_layout([TensorSpec("x", (1, 1), F32)], metadata)
    with Transaction(path, {path.name: layout}, folder=False, force=True) as transaction:
        transaction.commit()
    return open_gguf(path).metadata


def test_reads_what_sentencepiece_trained(trained: bytes, tokenizer: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained)
    assert [text for text, _, _ in tokenizer.pieces] == [processor.id_to_piece(i) for i in range(600)]
    assert [score for _, score, _ in tokenizer.pieces] == [processor.get_score(i) for i in range(600)]
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, None)
    assert all((type_ == BYTE) == processor.is_byte(i) for i, (_, _, type_) in enumerate(tokenizer.pieces))
    assert tokenizer.files == {MODEL_FILE: trained}
    assert tokenizer.encode("  if x:") == processor.encode("  if x:")


def test_a_rebuilt_model_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    rebuilt = replace(tokenizer, files={})
    assert rebuilt.sentencepiece() != tokenizer.sentencepiece()
    for line in LINES[:300] + HARD:
        assert rebuilt.encode(line) == tokenizer.encode(line)


def test_auto_tokenizer_gives_sentencepieces_ids_on_every_line(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="opens the folder")
    folder = write_folder(tmp_path, hugging_face_files(tokenizer, 2048))
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id, auto.model_max_length) == (1, 2, 0, 2048)
    for line in LINES + HARD:
        assert auto(line).input_ids == [1, *tokenizer.encode(line)], repr(line)
        if "▁" not in line:  # which SentencePiece itself cannot tell from a space
            assert auto.decode(auto(line).input_ids, skip_special_tokens=True) == line


def test_the_tokenizers_library_agrees_on_random_text(tokenizer: Tokenizer) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    fast = tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer).decode())
    random_ = random.Random(0)
    for _ in range(1000):
        alphabet = " ▁aeist\n=-(_#é"[: random_.randint(1, 14)]
        text = "".join(random_.choice(alphabet) for _ in range(random_.randint(0, 60)))
        assert fast.encode(text, add_special_tokens=False).ids == tokenizer.encode(text), repr(text)


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no prefix"])
def test_a_vocabulary_without_byte_pieces_or_prefix_is_exact_too(tokenizer: Tokenizer, prefix: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    pieces = tuple(piece for piece in tokenizer.pieces if piece[2] != BYTE)
    plain = replace(tokenizer, pieces=pieces, add_space_prefix=prefix, files={})
    fast = tokenizers.Tokenizer.from_str(tokenizer_json(plain).decode())
    for line in LINES[:200] + HARD:
        assert fast.encode(line, add_special_tokens=False).ids == plain.encode(line), repr(line)


@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, False), (True, True), (False, True)])
def test_bos_and_eos_are_added_as_said(tokenizer: Tokenizer, add_bos: bool, add_eos: bool) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="reads tokenizer.json")
    said = replace(tokenizer, add_bos=add_bos, add_eos=add_eos)
    fast = tokenizers.Tokenizer.from_str(tokenizer_json(said).decode())
    before, after = [1] * add_bos, [2] * add_eos
    assert fast.encode("x y").ids == [*before, *tokenizer.encode("x y"), *after]
    pair = [*before, *tokenizer.encode("x"), *after, *before, *tokenizer.encode("y"), *after]
    assert fast.encode("x", "y").ids == pair


def test_merges_are_every_split_best_score_first() -> None:
    pieces = tuple((text, -float(i), NORMAL) for i, text in enumerate(("abc", "ab", "bc", "a", "b", "c")))
    assert merges_of(pieces) == [("ab", "c"), ("a", "bc"), ("a", "b"), ("b", "c")]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (("[INST]", 0.0, USER_DEFINED), "user-defined"),
        (("▁", 0.0, NORMAL), "there twice"),
        (("aa", -3.0, UNUSED), "unused"),
    ],
)
def test_what_tokenizer_json_cannot_hold_is_refused(
    tokenizer: Tokenizer, piece: tuple[str, float, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        tokenizer_json(replace(tokenizer, pieces=(*tokenizer.pieces, piece)))


def test_two_pieces_of_one_score_are_refused_where_they_can_overlap(tokenizer: Tokenizer) -> None:
    text, score = next((text, score) for text, score, type_ in tokenizer.pieces if type_ == NORMAL and len(text) == 2)
    known = {text for text, _, _ in tokenizer.pieces}
    after = next(text[1] + other for other in known if len(other) == 1 and text[1] + other not in known)
    beside = next(one + other for one in "jqxz" for other in "JQXZ" if one + other not in known and one not in text)
    with pytest.raises(ModelError, match="both score"):
        tokenizer_json(replace(tokenizer, pieces=(*tokenizer.pieces, (after, score, NORMAL))))
    assert tokenizer_json(replace(tokenizer, pieces=(*tokenizer.pieces, (beside, score, NORMAL))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": UNIGRAM}, "not BPE"),
        ({"charsmap": b"x", "normalizer": "nmt_nfkc"}, "nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "extra whitespace"),
        ({"escape_whitespaces": False}, "escape"),
        ({"whitespace_as_suffix": True}, "end of pieces"),
    ],
)
def test_other_kinds_of_sentencepiece_models_are_refused(trained: bytes, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_sentencepiece(encode_model(replace(decode_model(trained), **change)))


def test_gguf_gives_everything_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    said = replace(tokenizer, add_eos=True, pad_id=2, chat_template="{{ bos_token }}")
    metadata = through_gguf(said, 608, tmp_path / "v.gguf")
    assert list(metadata["tokenizer.ggml.tokens"])[598:602] == [
        *(p[0] for p in said.pieces[598:]),
        "[PAD600]",
        "[PAD601]",
    ]
    assert set(list(metadata["tokenizer.ggml.token_type"])[600:]) == {UNUSED}
    assert read_gguf_vocabulary(metadata) == said


def test_gguf_without_the_original_file_still_encodes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    metadata = through_gguf(replace(tokenizer, files={}), 600, tmp_path / "v.gguf")
    assert "smelt.tokenizer.model" not in metadata
    back = read_gguf_vocabulary(metadata)
    for line in LINES[:100] + HARD:
        assert back.encode(line) == tokenizer.encode(line)


def test_gguf_refuses_a_vocabulary_larger_than_the_embedding_or_without_bytes(tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match="only 599 rows"):
        gguf_vocabulary(tokenizer, 599)
    with pytest.raises(ModelError, match="255 byte pieces"):
        gguf_vocabulary(replace(tokenizer, pieces=tokenizer.pieces[:3] + tokenizer.pieces[4:]), 600)


def strings(texts: list[str]) -> GGUFArray:
    raws = [text.encode() for text in texts]
    content = b"".join(len(raw).to_bytes(8, "little") + raw for raw in raws)
    return GGUFArray("string", content, np.cumsum([0, *(len(raw) + 8 for raw in raws)]))


def numbers(type_: str, values: list[float], dtype: Any) -> GGUFArray:
    return GGUFArray(type_, np.array(values, dtype).tobytes())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ggml.tokens", "abc", "wanted an array of string"),
        ("ggml.tokens", strings([]), "0 elements"),
        ("ggml.tokens", strings(["a"]), "wanted 1"),
        ("ggml.scores", numbers("i32", [0] * 600, np.int32), "wanted an array of f32"),
        ("ggml.scores", numbers("f32", [0] * 599, np.float32), "599 elements, wanted 600"),
        ("ggml.scores", numbers("f32", [float("nan")] * 600, np.float32), "score nan"),
        ("ggml.scores", None, "is None"),
        ("ggml.token_type", numbers("u32", [1] * 600, np.uint32), "wanted an array of i32"),
        ("ggml.token_type", numbers("i32", [0] * 600, np.int32), "type 0"),
        ("ggml.token_type", numbers("i32", [7] * 600, np.int32), "type 7"),
        ("ggml.token_type", numbers("i32", [6] * 600, np.int32), "is no byte"),
        ("ggml.bos_token_id", 600, "wanted a number below 600"),
        ("ggml.eos_token_id", -1, "wanted a number below 600"),
        ("ggml.unknown_token_id", True, "wanted a number"),
        ("ggml.padding_token_id", 1.5, "wanted a number"),
        ("ggml.add_bos_token", 1, "wanted true or false"),
        ("chat_template", 5, "no text"),
        ("chat_template", "x" * 2_000_000, "no text"),
    ],
)
def test_hostile_gguf_vocabularies_are_format_errors(
    tokenizer: Tokenizer, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    metadata = dict(through_gguf(tokenizer, 600, tmp_path / "v.gguf"))
    metadata[f"tokenizer.{key}"] = value
    with pytest.raises(FormatError, match=message):
        read_gguf_vocabulary(metadata)


def test_an_original_that_disagrees_with_the_tokens_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    metadata = dict(through_gguf(tokenizer, 600, tmp_path / "v.gguf"))
    texts = list(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] = strings([*texts[:500], "edited", *texts[501:]])
    with pytest.raises(FormatError, match="disagree about token 500"):
        read_gguf_vocabulary(metadata)


def test_another_kind_of_gguf_vocabulary_is_refused() -> None:
    with pytest.raises(ModelError, match="'bert'"):
        read_gguf_vocabulary({"tokenizer.ggml.model": "bert"})


def test_a_folder_with_tokenizer_model_is_read_with_its_settings(tokenizer: Tokenizer, tmp_path: Path) -> None:
    said = replace(tokenizer, pad_id=2, add_eos=True, chat_template="{{ x }}")
    files = hugging_face_files(said, 2048)
    folder = write_folder(tmp_path, files)
    assert read_hugging_face(folder, {}) == replace(said, files=files)
    (folder / "chat_template.jinja").write_text("{{ y }}")
    back = read_hugging_face(folder, {})
    assert back is not None
    assert back.chat_template == "{{ y }}"


def test_a_folder_with_tokenizer_json_alone_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = hugging_face_files(tokenizer, 2048)
    del files[MODEL_FILE]
    back = read_hugging_face(write_folder(tmp_path, files), {})
    assert back is not None
    assert [(text, type_) for text, _, type_ in back.pieces] == [(text, type_) for text, _, type_ in tokenizer.pieces]
    assert (back.bos_id, back.eos_id, back.unk_id, back.add_bos) == (1, 2, 0, True)
    for line in LINES[:200] + HARD:
        assert back.encode(line) == tokenizer.encode(line)
    assert tokenizer_json(back) == files["tokenizer.json"]


def test_added_tokens_come_after_the_pieces(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {MODEL_FILE: tokenizer.files[MODEL_FILE]})
    (folder / "added_tokens.json").write_text('{"[PAD]": 600, "<tool>": 601}')
    settings = {"added_tokens_decoder": {"600": {"content": "[PAD]", "special": True}}, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    back = read_hugging_face(folder, {"bos_token_id": 1, "eos_token_id": [2, 1]})
    assert back is not None
    assert back.pieces[600:] == (("[PAD]", -1000.0, CONTROL), ("<tool>", -1000.0, USER_DEFINED))
    assert (back.bos_id, back.eos_id, back.pad_id) == (1, 2, 600)
    assert back.encode("a<tool>b").count(601) == 1  # cut out of a text, though tokenizer.model does not know it
    assert read_gguf_vocabulary(through_gguf(back, 602, tmp_path / "v.gguf")) == back


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("tokenizer_config.json", b"[]", FormatError),
        ("tokenizer_config.json", b"[" * 100_000, FormatError),
        ("tokenizer_config.json", b'{"bos_token": "nobody"}', ModelError),
        ("tokenizer_config.json", b'{"add_bos_token": "yes"}', FormatError),
        ("tokenizer_config.json", b'{"chat_template": 3}', FormatError),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"-1": {"content": "x"}}}', FormatError),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"900": {"content": "x"}}}', ModelError),
        ("added_tokens.json", b'{"x": true}', FormatError),
        ("chat_template.jinja", b"\xff", FormatError),
    ],
)
def test_hostile_side_files_are_input_errors(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, error: type[Exception]
) -> None:
    folder = write_folder(tmp_path, {MODEL_FILE: tokenizer.files[MODEL_FILE], name: content})
    with pytest.raises(error) as caught:
        read_hugging_face(folder, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"byte_fallback": False},
        {"type": "Unigram"},
        {"merges": [["▁", "▁"]]},
        {"unk_token": None},
    ],
)
def test_a_tokenizer_json_of_another_kind_is_none(tokenizer: Tokenizer, tmp_path: Path, change: dict[str, Any]) -> None:
    content = json.loads(tokenizer_json(tokenizer))
    content["model"] |= change
    folder = write_folder(tmp_path, {"tokenizer.json": json.dumps(content).encode()})
    assert read_hugging_face(folder, {}) is None


def test_an_empty_folder_has_no_tokenizer(tmp_path: Path) -> None:
    assert read_hugging_face(tmp_path, {}) is None
