from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from smelt.convert.tokenizer import BYTE_LEVEL, MODEL_FILE, Tokenizer
from smelt.convert.tokenizer_bytes import ALPHABET, TO_TEXT, bytes_of, encode_by_ranks, merges_of_ranks, text_of
from smelt.convert.tokenizer_files import hugging_face_files
from smelt.convert.tokenizer_folder import read_files
from smelt.convert.tokenizer_gguf import gguf_vocabulary, read_gguf_vocabulary, vocabulary_notes
from smelt.convert.tokenizer_open import open_tokenizer, with_pre
from smelt.convert.tokenizer_pre import RULES, name_of
from smelt.convert.tokenizer_proof import HARD_TEXTS, texts_of
from smelt.convert.tokenizer_tiktoken import ranks_encoder, read_tiktoken, special_names
from smelt.errors import FormatError, InputError, ModelError, UsageError
from smelt.formats.gguf import GGUFArray, GGUFValue, gguf_layout
from smelt.formats.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED
from smelt.formats.tiktoken import decode_ranks

from .byte_level import LINES, UNICODE, trained_json, trained_ranks

HERE = Path(__file__).resolve()
PUBLISHED = HERE.parents[3] / "shared" / "models" / "tokenizers" / "llama3.tokenizer.model"
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def from_json(pre: str) -> Tokenizer:
    found = read_files({"tokenizer.json": trained_json(pre)}, {}, Path("m"))
    assert found is not None
    return found


def through_gguf(tokenizer: Tokenizer, n_vocab: int | None = None) -> dict[str, Any]:
    keys = gguf_vocabulary(tokenizer, n_vocab or len(tokenizer.pieces))
    return {key: value.value for key, value in keys.items()}


def gguf_file(tokenizer: Tokenizer, path: Path) -> Path:
    keys = {
        "general.architecture": GGUFValue("string", "llama"),
        **gguf_vocabulary(tokenizer, len(tokenizer.pieces)),
    }
    layout = gguf_layout([], keys)
    path.write_bytes(layout.pieces[0][1].ljust(layout.nbytes, b"\0"))
    return path


def texts(n: int, seed: int) -> list[str]:
    """Lines, runs of lines, and random characters of many scripts."""
    source = random.Random(seed)
    ranges = [(32, 127), (0x80, 0x800), (0x800, 0xD800), (0x1F000, 0x20000), (9, 14), (32, 33)]
    found = []
    for _ in range(n):
        kind = source.random()
        if kind < 0.6:
            found.append("\n".join(source.choice(LINES) for _ in range(source.randint(1, 3))))
        elif kind < 0.9:
            spans = [source.choice(ranges) for _ in range(source.randint(0, 60))]
            found.append("".join(chr(source.randrange(*span)) for span in spans))
        else:
            found.append(source.choice(HARD_TEXTS) + source.choice(LINES) + UNICODE)
    return found


@pytest.fixture(scope="module", params=["trained", pytest.param("published", marks=pytest.mark.long)])
def ranks(request: pytest.FixtureRequest) -> bytes:
    """A small tiktoken file, and Llama 3's own where it lies beside the checkout."""
    if request.param == "trained":
        return trained_ranks()
    if not PUBLISHED.is_file():
        pytest.skip(f"{PUBLISHED.name} is not beside the checkout")
    return PUBLISHED.read_bytes()


def test_every_byte_has_a_character_of_its_own_and_comes_back() -> None:
    assert len(ALPHABET) == 256 and TO_TEXT[ord(" ")] == "\u0120" and TO_TEXT[ord("A")] == "A"
    every = bytes(range(256))
    assert bytes_of(text_of(every)) == every
    assert bytes_of("a b") is None


def test_merges_of_ranks_are_every_split_by_the_ranks_of_its_halves() -> None:
    assert merges_of_ranks(["a", "b", "c", "ab", "bc", "abc"]) == ["a b", "b c", "a bc", "ab c"]


def test_the_pair_of_lowest_rank_is_joined_first() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4}
    assert encode_by_ranks(ranks, b"abc") == [0, 3]
    assert encode_by_ranks({**ranks, b"abc": 5}, b"abc") == [5]


def test_tiktokens_ids_on_ten_thousand_texts(ranks: bytes) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="the judge of its own format")
    judge = tiktoken.Encoding(
        "judge",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(decode_ranks(ranks))},
        special_tokens={},
    )
    source = read_tiktoken(ranks, llama3_1=True)
    from_gguf = read_gguf_vocabulary(through_gguf(source))
    from_folder = read_files(hugging_face_files(source, 8192), {}, Path("m"))
    assert from_folder is not None
    plain = ranks_encoder(ranks)
    for i, text in enumerate(texts(10_000, seed=0)):
        wanted = judge.encode_ordinary(text)
        assert from_gguf.encode(text) == wanted, repr(text)
        assert from_folder.encode(text) == wanted, repr(text)
        if i % 20 == 0:  # it is slow
            assert plain(text) == wanted, repr(text)


def test_ranks_come_back_byte_for_byte(ranks: bytes) -> None:
    source = read_tiktoken(ranks, llama3_1=True)
    metadata = through_gguf(source)
    assert not [key for key in metadata if key.startswith("smelt.")]  # the tokens say it all
    assert read_gguf_vocabulary(metadata).model_file() == ranks
    folder = read_files(hugging_face_files(source, 8192), {}, Path("m"))
    assert folder is not None
    assert folder.model_file() == ranks
    assert (folder.pieces, folder.merges, folder.pre) == (source.pieces, source.merges, "llama-bpe")
    assert folder.special_ids == source.special_ids and folder.bos_id == source.bos_id and folder.add_bos


def test_ranks_in_another_order_come_back_too() -> None:
    shuffled = b"".join(sorted(trained_ranks().splitlines(keepends=True))).replace(b"\n", b"\r\n")
    source = read_tiktoken(shuffled, llama3_1=False)
    assert read_gguf_vocabulary(through_gguf(source)).model_file() == shuffled


def test_auto_tokenizer_opens_the_folder_with_the_same_ids(ranks: bytes, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="opens the folder")
    source = read_tiktoken(ranks, llama3_1=True)
    for name, content in hugging_face_files(source, 8192).items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    n = len(source.pieces) - 256
    assert (len(auto), auto.bos_token_id, auto.eos_token_id) == (n + 256, n, n + 1)
    for text in texts(300, seed=1):
        assert auto(text).input_ids == [n, *source.encode(text)], repr(text)
        assert auto.decode(auto(text).input_ids, skip_special_tokens=True) == text
    chat = "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
    words = [source.encode(part) for part in ("user", "\n\nhi")]
    assert auto(chat, add_special_tokens=False).input_ids == [n + 6, *words[0], n + 7, *words[1], n + 9]


@pytest.mark.parametrize("pre", RULES)
def test_llama_cpp_gives_the_same_ids(pre: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="tokenizes with the GGUF vocabulary")
    source = from_json(pre)
    assert source.pre == pre
    judge = llama_cpp.Llama(str(gguf_file(source, tmp_path / "v.gguf")), vocab_only=True, verbose=False)
    for text in (*texts_of(source), *texts(100, seed=2)):
        if RULES[pre].normalizer:  # which llama.cpp leaves out
            text = text.encode("ascii", "ignore").decode()
        assert judge.tokenize(text.encode(), add_bos=False, special=False) == source.encode(text), repr(text)


def test_llama_cpp_gives_tiktokens_ids(ranks: bytes, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="tokenizes with the GGUF vocabulary")
    source = read_tiktoken(ranks, llama3_1=True)
    judge = llama_cpp.Llama(str(gguf_file(source, tmp_path / "v.gguf")), vocab_only=True, verbose=False)
    assert (judge.token_bos(), judge.token_eos()) == (source.bos_id, source.eos_id)
    for text in (*texts_of(source), *texts(300, seed=3)):
        assert judge.tokenize(text.encode(), add_bos=False, special=False) == source.encode(text), repr(text)
    marked = judge.tokenize(b"<|eot_id|>", add_bos=True, special=True)
    assert marked == [source.bos_id, source.special_ids["eot"]]


@pytest.mark.parametrize("pre", RULES)
def test_a_folder_comes_back_from_gguf_byte_for_byte(pre: str) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": "{{ x }}"}
    files = {
        "tokenizer.json": trained_json(pre),
        "tokenizer_config.json": json.dumps(settings, indent=4).encode(),
        "generation_config.json": b'{"temperature":\t0.6}',
        "chat_template.jinja": b"{{ y }}\r\n",
    }
    source = read_files(files, {}, Path("m"))
    assert source is not None
    assert (source.chat_template, source.eos_id, source.pieces[-1][2]) == ("{{ y }}\r\n", 700, USER_DEFINED)
    back = read_gguf_vocabulary(through_gguf(source, 768))
    assert back == source
    assert hugging_face_files(back, 2048) == files


@pytest.mark.parametrize("pre", RULES)
def test_a_gguf_vocabulary_alone_makes_a_folder_of_the_same_ids(pre: str) -> None:
    source = from_json(pre)
    bare = {key: value for key, value in through_gguf(source).items() if not key.startswith("smelt.")}
    again = read_files(hugging_face_files(read_gguf_vocabulary(bare), 2048), {}, Path("m"))
    assert again is not None
    assert (again.pieces, again.merges, again.pre) == (source.pieces, source.merges, pre)
    for text in (*texts_of(source), *LINES[:100]):
        assert again.encode(text) == source.encode(text), repr(text)


def test_where_gguf_keys_were_edited_they_win_over_the_carried_files() -> None:
    files = {
        "tokenizer.json": trained_json("gpt-2"),
        "tokenizer_config.json": b'{"eos_token": "<|end|>", "chat_template": "old"}',
    }
    source = read_files(files, {}, Path("m"))
    assert source is not None
    metadata = through_gguf(source) | {"tokenizer.chat_template": "new"}
    edited = read_gguf_vocabulary(metadata)
    assert (edited.chat_template, edited.files) == ("new", {})
    assert json.loads(hugging_face_files(edited, 64)["tokenizer_config.json"])["chat_template"] == "new"
    other = {**metadata, "smelt.files.tokenizer.json": trained_json("bloom").decode()}
    with pytest.raises(FormatError, match="one of them was edited"):
        read_gguf_vocabulary(other)


def test_vocab_and_merges_are_read_as_gpt2_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="opens the folder")
    model = json.loads(trained_json("gpt-2"))["model"]
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, **{text: id_ + 3 for text, id_ in model["vocab"].items()}}
    files = {
        "vocab.json": json.dumps(vocab).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"]), ""]).encode(),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "GPT2Tokenizer",
                "add_prefix_space": False,
                "add_bos_token": True,
                "bos_token": {"__type": "AddedToken", "content": "</s>"},
                "eos_token": "</s>",
                "pad_token": "<pad>",
            }
        ).encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    source = read_files(files, {}, tmp_path)
    assert source is not None
    assert (source.pre, source.bos_id, source.eos_id, source.pad_id, source.add_bos) == ("gpt-2", 2, 2, 1, True)
    assert source.pieces[2] == ("</s>", 0.0, CONTROL) and source.pieces[0][2] == NORMAL
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*LINES[:300], *HARD_TEXTS[:-1]):
        assert auto(text, add_special_tokens=False).input_ids == source.encode(text), repr(text)
    back = read_gguf_vocabulary(through_gguf(source))
    assert back == source and back.files == files
    assert open_tokenizer(tmp_path / "vocab.json").merges == source.merges


def test_ids_without_a_token_are_padding_and_stay_away(tmp_path: Path) -> None:
    content = json.loads(trained_json("qwen2"))
    content["added_tokens"][1]["id"] = 720
    lying = read_files({"tokenizer.json": json.dumps(content).encode()}, {}, tmp_path)
    assert lying is not None
    with pytest.raises(ModelError, match=r"<tool>.*701"):  # the library gives it the next id, whatever the file says
        gguf_vocabulary(lying, 800)
    content["model"]["vocab"]["<tool>"] = 720
    files = {"tokenizer.json": json.dumps(content).encode()}
    source = read_files(files, {}, tmp_path)
    assert source is not None
    assert source.pieces[701] == ("[PAD701]", -10000.0, UNUSED) and source.pieces[720][0] == "<tool>"
    bare = {key: value for key, value in through_gguf(source, 800).items() if not key.startswith("smelt.")}
    again = read_gguf_vocabulary(bare)
    assert again.pieces == source.pieces
    assert again.encode("a<tool>[PAD701]") == [*source.encode("a"), 720, *source.encode("[PAD701]")]


def test_llama_3_and_3_1_differ_in_the_names_of_special_tokens() -> None:
    old, new = special_names(llama3_1=False), special_names(llama3_1=True)
    assert len(set(old)) == len(set(new)) == 256
    assert (old[9], new[9], old[10], new[10]) == (
        "<|eot_id|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
        "<|python_tag|>",
    )
    assert (old[255], new[255], new[8]) == (
        "<|reserved_special_token_250|>",
        "<|reserved_special_token_247|>",
        "<|eom_id|>",
    )


@pytest.mark.parametrize("change", [{"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "ByteLevel"}}])
def test_unknown_rules_are_refused_by_one_line_that_names_the_way_out(change: Mapping[str, Any]) -> None:
    content = {**json.loads(trained_json("gpt-2")), **change}
    source = read_files({"tokenizer.json": json.dumps(content).encode()}, {}, Path("m"))
    assert source is not None and source.pre is None
    with pytest.raises(ModelError, match=r"--pre NAME .*llama-bpe.*--skip-tokenizer") as caught:
        gguf_vocabulary(source, 702)
    assert "\n" not in str(caught.value)


def test_a_name_said_by_hand_is_proven_where_it_is_known() -> None:
    content = json.loads(trained_json("gpt-2"))
    spelled = {
        "type": "Split",
        "pattern": {"Regex": "'(?:s|t|re|ve|m|ll|d)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    }
    content["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {**spelled, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }
    source = read_files({"tokenizer.json": json.dumps(content).encode()}, {}, Path("m"))
    assert source is not None and source.pre is None
    right = with_pre(source, "gpt-2")
    assert right is not None
    assert through_gguf(right)["tokenizer.ggml.pre"] == "gpt-2"
    wrong = with_pre(source, "llama-bpe")
    assert wrong is not None
    with pytest.raises(ModelError, match=r"would change the ids of .* in the source, .*--skip-tokenizer"):
        gguf_vocabulary(wrong, 702)
    elsewhere = with_pre(source, "deepseek-llm")
    assert elsewhere is not None
    assert through_gguf(elsewhere)["tokenizer.ggml.pre"] == "deepseek-llm"
    assert "not compared" in vocabulary_notes(elsewhere)[0]
    assert vocabulary_notes(right) == ()


def test_pre_is_refused_for_a_sentencepiece_vocabulary() -> None:
    with pytest.raises(UsageError, match="--pre x"):
        with_pre(Tokenizer("sentencepiece", (), None, None, None), "x")


def test_rules_are_known_in_every_published_spelling() -> None:
    spelled = PATTERN.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}

    def split(pattern: str, **said: Any) -> dict[str, Any]:
        step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **said}
        return {"type": "Sequence", "pretokenizers": [step, last]}

    assert name_of(None, split(PATTERN), True) == name_of(None, split(spelled), True) == "llama-bpe"
    assert name_of(None, split(PATTERN), False) == "smaug-bpe"
    assert name_of({"type": "NFC"}, split(PATTERN), True) is None
    assert name_of(None, split(PATTERN, behavior="Removed"), True) is None
    assert name_of(None, {"type": "ByteLevel", "add_prefix_space": False}, False) == "gpt-2"
    assert name_of(None, {"type": "ByteLevel"}, False) is None  # puts a space in front
    bloom = " ?[^(\\s|.,!?…。，、।۔،)]+"
    assert name_of(None, split(bloom), False) == "bloom"


def test_a_vocabulary_that_ranks_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match="rules of 'qwen2'"):
        from_json("qwen2").model_file()
    source = from_json("llama-bpe")
    with pytest.raises(ModelError, match="its merges are not those"):
        replace(source, merges=source.merges[:-1]).model_file()
    with pytest.raises(ModelError, match="Llama 4"):
        read_tiktoken(b"".join(b"%s %d\n" % (line, i) for i, line in enumerate(_base64_tokens(200_000))), True)


def _base64_tokens(n: int) -> list[bytes]:
    import base64

    return [base64.b64encode(i.to_bytes(3, "big")) for i in range(n)]


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"vocab": None}, "no vocabulary"),
    ({"vocab": {"a": 0, "b": 0}}, "an id twice"),
    ({"vocab": {"a": "0"}}, "an id twice, or one that is none"),
    ({"vocab": {"a": -1}}, "between 0"),
    ({"vocab": {"a": 2**60}}, "between 0"),
    ({"vocab": {"": 0}}, "empty"),
    ({"vocab": {"\ud800": 0}}, "surrogate"),
    ({"merges": [1]}, "no pairs"),
    ({"merges": [["a"]]}, "no pairs"),
    ({"merges": "a b"}, "no pairs"),
    ({"merges": ["a b c"]}, "no pairs"),
    ({"merges": [["a b", "c"]]}, "no pairs"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_a_hostile_model_is_a_format_error(change: dict[str, Any], message: str) -> None:
    content = json.loads(trained_json("gpt-2"))
    content["model"] |= change
    with pytest.raises(FormatError, match=message) as caught:
        read_files({"tokenizer.json": json.dumps(content).encode()}, {}, Path("m"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"added_tokens": {"x": 1}}, FormatError, "added_tokens"),
        ({"added_tokens": [{"id": i, "content": str(i)} for i in range(20_000)]}, FormatError, "20000 tokens"),
        ({"added_tokens": [{"id": 5, "content": "other"}]}, FormatError, "has the id 5"),
        ({"added_tokens": [{"id": 900, "content": "a"}]}, FormatError, "same text"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}]}},
            FormatError,
            "define",
        ),
        (
            {"post_processor": {"type": "RobertaProcessing", "cls": ["a", 10**9], "sep": ["b", 0]}},
            FormatError,
            "number below",
        ),
        ({"post_processor": {"type": "RobertaProcessing", "cls": 5}}, FormatError, "define"),
    ],
)
def test_hostile_parts_around_the_model_are_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    content = {**json.loads(trained_json("gpt-2")), **change}
    with pytest.raises(error, match=message) as caught:
        read_files({"tokenizer.json": json.dumps(content).encode()}, {}, Path("m"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("depth", [3, 490, 100_000])
def test_a_pre_tokenizer_may_be_nested_but_not_without_end(depth: int) -> None:
    content = json.dumps({**json.loads(trained_json("gpt-2")), "pre_tokenizer": "HERE"})
    inner = '{"type": "ByteLevel", "add_prefix_space": false}'
    nested = '{"type": "Sequence", "pretokenizers": [' * depth + inner + "]}" * depth
    files = {"tokenizer.json": content.replace('"HERE"', nested).encode()}
    if depth == 3:
        found = read_files(files, {}, Path("m"))
        assert found is not None and found.pre == "gpt-2"
        return
    with pytest.raises(FormatError) as caught:
        read_files(files, {}, Path("m"))
    assert "\n" not in str(caught.value)


def test_merges_of_tokens_that_are_not_there_are_refused_before_anything_is_written() -> None:
    content = json.loads(trained_json("gpt-2"))
    content["model"]["merges"].append(["zz", "qq"])
    source = read_files({"tokenizer.json": json.dumps(content).encode()}, {}, Path("m"))
    assert source is not None
    with pytest.raises(ModelError, match="zz") as caught:
        gguf_vocabulary(source, 702)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("merges", ["ab"], "is not two tokens"),
        ("merges", ["a b c"], "is not two tokens"),
        ("merges", None, "wanted an array of string"),
        ("tokens", ["a"] * 702, "same text"),
        ("token_type", [6] * 702, "not 1 to 5"),
        ("token_type", [1] * 5, "5 elements"),
    ],
)
def test_hostile_gguf_vocabularies_are_refused(key: str, value: Any, message: str) -> None:
    from smelt.convert.tokenizer_keys import numbers, strings

    metadata = through_gguf(from_json("gpt-2"))
    made = None if value is None else strings(value) if isinstance(value[0], str) else numbers("i32", value)
    metadata[f"tokenizer.ggml.{key}"] = made and made.value
    with pytest.raises(FormatError, match=message):
        read_gguf_vocabulary(metadata)


def test_a_carried_file_of_another_type_is_refused() -> None:
    metadata = through_gguf(from_json("gpt-2"))
    assert isinstance(metadata["smelt.files.tokenizer.json"], str)
    with pytest.raises(FormatError, match=r"smelt\.files\.tokenizer\.json is 5"):
        read_gguf_vocabulary(metadata | {"smelt.files.tokenizer.json": 5})
    as_bytes = {"smelt.files.tokenizer.json": GGUFArray("u8", trained_json("gpt-2"))}
    assert read_gguf_vocabulary(metadata | as_bytes) == read_gguf_vocabulary(metadata)


def test_a_vocabulary_without_all_bytes_is_no_gguf_vocabulary() -> None:
    source = from_json("gpt-2")
    with pytest.raises(ModelError, match="1 of the 256 bytes"):
        gguf_vocabulary(replace(source, pieces=(("first", 0.0, NORMAL), *source.pieces[1:])), 702)
    with pytest.raises(ModelError, match="no merges"):
        gguf_vocabulary(replace(source, merges=()), 702)


def test_a_tokenizer_file_is_told_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(trained_ranks())
    (tmp_path / "b.bin").write_bytes(trained_json("bloom"))
    (tmp_path / "c.bin").write_bytes(b'{"model": {"type": "WordPiece"}}')
    assert open_tokenizer(tmp_path / "a.bin").files[MODEL_FILE] == trained_ranks()
    assert (open_tokenizer(tmp_path / "b.bin").pre, open_tokenizer(tmp_path / "b.bin").kind) == ("bloom", BYTE_LEVEL)
    with pytest.raises(ModelError, match=r"c\.bin: holds neither"):
        open_tokenizer(tmp_path / "c.bin")
    with pytest.raises(InputError, match="no such file"):
        open_tokenizer(tmp_path / "d.bin")
    (tmp_path / "e.bin").write_bytes(trained_ranks() + b"IQ== 0\n")
    with pytest.raises(FormatError, match=r"e\.bin: line 701: rank 0 is there twice"):
        open_tokenizer(tmp_path / "e.bin")
