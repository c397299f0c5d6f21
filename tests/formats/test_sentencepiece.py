from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smelt.errors import FormatError
from smelt.formats import sentencepiece
from smelt.formats.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    SentencePieceModel,
    byte_of,
    decode_model,
    encode_model,
    is_sentencepiece,
)

PIECES = (
    ("<unk>", 0.0, UNKNOWN),
    ("<s>", 0.0, CONTROL),
    ("</s>", 0.0, CONTROL),
    ("<0x0A>", 0.0, BYTE),
    ("▁a", -1.5, NORMAL),
)
MODEL = SentencePieceModel(PIECES)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def piece(text: bytes, score: float = 0.0, type_: int = NORMAL) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + bytes([0x18, type_]))


UNK = piece(b"<unk>", type_=UNKNOWN)


def test_golden_bytes_of_a_small_model() -> None:
    content = (
        UNK + piece(b"\xe2\x96\x81a", -1.5) + field(2, b"\x18\x02\x98\x02\x01") + field(3, b"\x0a\x08identity\x20\x00")
    )
    model = decode_model(content)
    assert model.pieces == (("<unk>", 0.0, UNKNOWN), ("▁a", -1.5, NORMAL))
    assert (model.model_type, model.byte_fallback, model.normalizer) == (BPE, True, "identity")
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (0, None, None, None)
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces) == (True, False, True)


def test_what_a_file_leaves_out_is_protobufs_default() -> None:
    model = decode_model(UNK)
    assert (model.model_type, model.byte_fallback) == (UNIGRAM, False)
    assert (model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces) == (True, True, True)


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        replace(MODEL, model_type=UNIGRAM, byte_fallback=False, whitespace_as_suffix=True),
        replace(MODEL, normalizer="nmt_nfkc", charsmap=b"\x00\xff", add_dummy_prefix=False),
        replace(MODEL, remove_extra_whitespaces=True, escape_whitespaces=False),
        replace(MODEL, bos_id=None, eos_id=1, pad_id=2),
    ],
)
def test_decode_inverts_encode(model: SentencePieceModel) -> None:
    if model.bos_id is None:  # a role without a piece keeps its standard name, which must then be no control piece's
        pieces = tuple((text.replace("<s>", "[end]").replace("</s>", "[pad]"), *rest) for text, *rest in model.pieces)
        model = replace(model, pieces=pieces)  # type: ignore[arg-type]
    assert decode_model(encode_model(model)) == model


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@given(st.lists(st.tuples(TEXTS, st.floats(width=32, allow_nan=False, allow_infinity=False)), unique_by=lambda p: p[0]))
@settings(max_examples=50, deadline=None)
def test_any_pieces_survive_the_round_trip(found: list[tuple[str, float]]) -> None:
    pieces = (*PIECES, *((f"x{text}", score, NORMAL) for text, score in found))
    assert decode_model(encode_model(SentencePieceModel(pieces))).pieces == pieces


def test_unknown_fields_of_every_wire_type_are_skipped() -> None:
    extra = b"\x50\x96\x01" + b"\x59" + bytes(8) + b"\x62\x02hi" + b"\x6d" + bytes(4)
    assert decode_model(UNK + extra + piece(b"a")).pieces[1][0] == "a"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 of 0 pieces are the unknown"),
        (piece(b"a"), "0 of 1 pieces"),
        (UNK + piece(b"x", type_=UNKNOWN), "2 of 2 pieces"),
        (UNK + piece(b"a") + piece(b"a"), "pieces 1 and 2"),
        (UNK + piece(b""), "is empty"),
        (UNK + piece(b"\xff"), "UTF-8"),
        (UNK + piece(b"a", float("nan")), "score is nan"),
        (UNK + piece(b"a", float("-inf")), "score is -inf"),
        (UNK + piece(b"a", type_=7), "type is 7"),
        (UNK + piece(b"a", type_=0), "type is 0"),
        (UNK + piece(b"<0x-1>", type_=BYTE), "is no byte"),
        (UNK + piece(b"<0x0a>", type_=BYTE), "is no byte"),
        (UNK + piece(b"<0x100>", type_=BYTE), "is no byte"),
        (UNK + field(1, field(1, b"a") + b"\x10\x01"), "not a 32-bit float"),
        (UNK + field(1, b"\x08\x05"), "is a number"),
        (UNK + field(1, field(1, b"a") + b"\x1a\x01x"), "is bytes"),
        (UNK + b"\x08\x01", "wire type 0"),
        (UNK + b"\x0b", "wire type 3"),
        (UNK + b"\x0f", "wire type 7"),
        (UNK + b"\x02\x00", "field number 0"),
        (UNK + b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes, 0 are left"),
        (UNK + b"\x0a" + b"\xff" * 10, "does not end"),
        (UNK + b"\x0a" + b"\xff" * 9 + b"\x02", "does not end"),
        (UNK + b"\x0a", "does not end"),
        (UNK + b"\x15\x00", "4 bytes, 1 are left"),
        (UNK + field(2, b"") + field(2, b""), "there twice"),
        (UNK + field(2, b"\x98\x02\x02"), "byte_fallback is 2"),
        (UNK + field(3, b"\x20\x7f"), "remove_extra_whitespaces is 127"),
        (UNK + field(3, b"\x08\x01"), "is a number"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b"<!DOCTYPE html>", "not a SentencePiece"),
        (b"version https://git-lfs.github.com/spec/v1\n", "SentencePiece"),
    ],
)
def test_malformed_content_is_a_format_error_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        decode_model(content)
    assert "\n" not in str(caught.value)


def test_every_cut_and_every_flipped_byte_is_an_error_or_a_model() -> None:
    content = encode_model(MODEL)
    for end in range(len(content)):
        try:
            decode_model(content[:end])
        except FormatError:
            continue
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            try:
                decode_model(bytes(damaged))
            except FormatError:
                continue


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_an_error_or_a_model(noise: bytes) -> None:
    try:
        decode_model(UNK + noise)
    except FormatError:
        return


def test_pieces_written_the_usual_way_are_read_as_any_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [*PIECES, *((f"word{i}" * (1 + i % 30), -float(i), NORMAL) for i in range(200))]
    usual = encode_model(replace(MODEL, pieces=tuple(many)))
    odd = {
        "an unknown field": piece(b"x") + field(1, field(1, b"y") + b"\x20\x01"),
        "a score that is NaN": piece(b"z", float("nan")),
        "no text": piece(b""),
        "type 7": piece(b"z", 0.0, 7),
        "not UTF-8": piece(b"\xff"),
        "a length that runs out": b"\x0a\x0a\x0a\x7fabc",
        "a long length in two bytes": b"\x0a\x8b\x00" + piece(b"zz")[2:],
    }

    def read(content: bytes) -> object:
        try:
            return decode_model(content)
        except FormatError as error:
            return str(error)

    contents = [usual, *(piece(b"first") + extra + usual for extra in odd.values())]
    quickly = [read(content) for content in contents]
    monkeypatch.setattr(sentencepiece, "_usual_pieces", lambda content: ([], 0))
    assert quickly == [read(content) for content in contents]
    assert isinstance(quickly[0], SentencePieceModel)


def test_too_many_pieces_are_refused_before_they_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.formats.sentencepiece.COUNT_CAP", 2)
    with pytest.raises(FormatError, match="more than 2 pieces"):
        decode_model(UNK + piece(b"a") + piece(b"b"))
    monkeypatch.setattr("smelt.formats.sentencepiece.SIZE_CAP", 2)
    with pytest.raises(FormatError, match="at most 2"):
        decode_model(UNK)


def test_tells_sentencepiece_from_text() -> None:
    assert is_sentencepiece(encode_model(MODEL))
    assert not is_sentencepiece(b"IQ== 0\n")
    assert not is_sentencepiece(b"")


def test_byte_pieces_are_upper_case_and_two_digits() -> None:
    assert [byte_of(text) for text in ("<0x00>", "<0xFF>", "<0xff>", "<0x1>", "0x01", "<0x01>\n")] == [0, 255] + [
        None
    ] * 4


def test_the_library_reads_what_is_written() -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the reference reader")
    pieces = (
        *PIECES[:3],
        *((f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)),
        ("▁", -1.0, NORMAL),
        ("a", -2.0, NORMAL),
        ("▁a", -0.5, NORMAL),
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=encode_model(SentencePieceModel(pieces)))
    assert processor.encode("a a\n") == [261, 261, 3 + 10]
    assert (processor.unk_id(), processor.bos_id(), processor.eos_id(), processor.pad_id()) == (0, 1, 2, -1)
    assert [processor.id_to_piece(i) for i in range(len(pieces))] == [text for text, _, _ in pieces]
