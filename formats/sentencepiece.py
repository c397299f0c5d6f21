"""SentencePiece's tokenizer.model: a protobuf message of pieces, read and written without the protobuf package.

    message = fields, each  varint key = number << 3 | wire type,  then  0 varint | 1 8 bytes | 2 length, bytes | 5 4 bytes

    model       1 pieces (repeated)   2 trainer_spec   3 normalizer_spec
    piece       1 text   2 score (f32)   3 type: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
    trainer     3 model_type (1 unigram, 2 bpe, 3 word, 4 char)   24 treat_whitespace_as_suffix   35 byte_fallback
                40..43 unk, bos, eos, pad ids   45..48 their pieces
    normalizer  1 name   2 precompiled_charsmap   3 add_dummy_prefix   4 remove_extra_whitespaces   5 escape_whitespaces

The types' numbers are GGUF's too. BOS, EOS and PAD are the control pieces of the trainer's names, as in the library, whatever
ids the trainer was once told. Source: google/sentencepiece, src/sentencepiece_model.proto, and protobuf.dev (encoding).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from ..errors import FormatError, quoted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)

Piece = tuple[str, float, int]

SIZE_CAP = 64 << 20  # bytes; vocabularies of 256 k pieces take 5 MiB
COUNT_CAP = 1 << 20  # pieces

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {_FIXED64: 8, _FIXED32: 4}
_F32 = struct.Struct("<f")
_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))


@dataclass(frozen=True)
class SentencePieceModel:
    """What a tokenizer.model says. `pieces` are (text, score, type) by id; an id is None where no piece has the role."""

    pieces: tuple[Piece, ...]
    model_type: int = BPE
    byte_fallback: bool = True
    unk_id: int | None = 0
    bos_id: int | None = 1
    eos_id: int | None = 2
    pad_id: int | None = None
    whitespace_as_suffix: bool = False
    normalizer: str = "identity"
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = False
    escape_whitespaces: bool = True


def is_sentencepiece(content: bytes) -> bool:
    """Whether `content` begins as a message of pieces does, and not as text."""
    return content[:1] == b"\x0a" and _TIKTOKEN_LINE.match(content) is None


@lru_cache(maxsize=2)  # a conversion looks at one file up to three times
def decode_model(content: bytes) -> SentencePieceModel:
    """A whole tokenizer.model. FormatError for anything malformed, and for what the library itself would refuse."""
    if len(content) > SIZE_CAP:
        raise FormatError(f"tokenizer.model: {len(content)} bytes, at most {SIZE_CAP} are read: is it the right file?")
    if _TIKTOKEN_LINE.match(content):
        raise FormatError("tokenizer.model: is a tiktoken vocabulary (Llama 3 and later), wanted SentencePiece")
    pieces, position = _usual_pieces(content)
    parts: dict[int, tuple[bytes, int]] = {}
    for number, wire, value, where in _fields(content[position:], position):
        if number == 1:
            if len(pieces) == COUNT_CAP:
                raise FormatError(f"tokenizer.model: more than {COUNT_CAP} pieces")
            pieces.append(_piece(_as_bytes(value, wire, where), where, len(pieces)))
        elif number in (2, 3):
            if number in parts:
                raise FormatError(f"tokenizer.model: byte {where}: field {number} is there twice")
            parts[number] = _as_bytes(value, wire, where), where
    _check_pieces(pieces)
    trainer = dict(_scalars(*parts.get(2, (b"", 0))))
    normalizer = dict(_scalars(*parts.get(3, (b"", 0))))
    controls = {text: i for i, (text, _, type_) in enumerate(pieces) if type_ == CONTROL}
    unknown = next(i for i, piece in enumerate(pieces) if piece[2] == UNKNOWN)
    names = [_text(trainer.get(number, default), "a special piece's name") for number, default in _SPECIAL_NAMES]
    return SentencePieceModel(
        tuple(pieces),
        model_type=_number(trainer.get(3, UNIGRAM), "model_type"),
        byte_fallback=_flag(trainer.get(35, 0), "byte_fallback"),
        unk_id=unknown,
        bos_id=controls.get(names[0]),
        eos_id=controls.get(names[1]),
        pad_id=controls.get(names[2]),
        whitespace_as_suffix=_flag(trainer.get(24, 0), "treat_whitespace_as_suffix"),
        normalizer=_text(normalizer.get(1, b""), "the normalizer's name"),
        charsmap=_raw(normalizer.get(2, b""), "precompiled_charsmap"),
        add_dummy_prefix=_flag(normalizer.get(3, 1), "add_dummy_prefix"),
        remove_extra_whitespaces=_flag(normalizer.get(4, 1), "remove_extra_whitespaces"),
        escape_whitespaces=_flag(normalizer.get(5, 1), "escape_whitespaces"),
    )


_SPECIAL_NAMES = ((46, b"<s>"), (47, b"</s>"), (48, b"<pad>"))


def byte_of(text: str) -> int | None:
    """The value of a byte piece such as `<0x0A>`; None for any other text."""
    match = _BYTE_PIECE.fullmatch(text)
    return int(match[1], 16) if match else None


def _check_pieces(pieces: list[Piece]) -> None:
    """What the library demands: one unknown piece, no piece twice, byte pieces that are bytes."""
    n_unknown = sum(type_ == UNKNOWN for _, _, type_ in pieces)
    if n_unknown != 1:
        raise FormatError(f"tokenizer.model: {n_unknown} of {len(pieces)} pieces are the unknown one, wanted exactly 1")
    seen: dict[str, int] = {}
    for i, (text, _, type_) in enumerate(pieces):
        if seen.setdefault(text, i) != i:
            raise FormatError(f"tokenizer.model: pieces {seen[text]} and {i} are both {quoted(text)}")
        if type_ == BYTE and byte_of(text) is None:
            raise FormatError(f"tokenizer.model: piece {i}: {quoted(text)} is no byte, wanted <0x00> to <0xFF>")


def _usual_pieces(content: bytes) -> tuple[list[Piece], int]:
    """The leading pieces that are written as the library writes them (text, score, type), and the byte after them.

    What looks any other way is left to `_fields`, which reads, or refuses, everything: 32,000 pieces take it 0.30 s, this 0.11.
    """
    pieces: list[Piece] = []
    position = 0
    while position + 2 + 0x7F < len(content) and len(pieces) < COUNT_CAP:
        key, nbytes, text_key, text_nbytes = content[position : position + 4]
        score_at, end = position + 4 + text_nbytes, position + 2 + nbytes
        if key != 0x0A or text_key != 0x0A or nbytes > 0x7F or not text_nbytes or end - score_at not in (5, 7):
            break
        type_ = NORMAL if end - score_at == 5 else content[end - 1]
        usual = content[score_at] == 0x15 and (end - score_at == 5 or content[end - 2] == 0x18)
        score: float = _F32.unpack_from(content, score_at + 1)[0]
        if not usual or not NORMAL <= type_ <= BYTE or not math.isfinite(score):
            break
        try:
            pieces.append((content[position + 4 : score_at].decode(), score, type_))
        except UnicodeDecodeError:
            break
        position = end
    return pieces, position


def _piece(content: bytes, begin: int, index: int) -> Piece:
    fields = dict(_scalars(content, begin))
    where = f"piece {index}"
    text = _text(fields.get(1, b""), where)
    if not text:
        raise FormatError(f"tokenizer.model: {where} is empty")
    raw = fields.get(2, bytes(4))
    if not isinstance(raw, bytes) or len(raw) != 4:
        raise FormatError(f"tokenizer.model: {where}: its score is not a 32-bit float")
    score: float = _F32.unpack(raw)[0]
    if not math.isfinite(score):
        raise FormatError(f"tokenizer.model: {where}: its score is {score}")
    type_ = _number(fields.get(3, NORMAL), where)
    if not NORMAL <= type_ <= BYTE:
        raise FormatError(f"tokenizer.model: {where}: its type is {type_}, wanted 1 to 6")
    return text, score, type_


def _fields(content: bytes, begin: int) -> Iterator[tuple[int, int, int | bytes, int]]:
    """A message's (number, wire type, value, where); `begin` is where `content` lies in the file."""
    position = 0
    while position < len(content):
        where = begin + position
        key, position = _varint(content, position, begin)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise FormatError(f"tokenizer.model: byte {where}: field number 0")
        if wire == _VARINT:
            value, position = _varint(content, position, begin)
            yield number, wire, value, where
            continue
        if wire == _BYTES:
            nbytes, position = _varint(content, position, begin)
        elif wire in _FIXED_SIZE:
            nbytes = _FIXED_SIZE[wire]
        else:
            raise FormatError(f"tokenizer.model: byte {where}: wire type {wire}: not a SentencePiece model")
        if nbytes > len(content) - position:
            raise FormatError(
                f"tokenizer.model: byte {where}: field {number} has {nbytes} bytes, {len(content) - position} are left: "
                "the file was cut, or is not a SentencePiece model"
            )
        yield number, wire, content[position : position + nbytes], begin + position
        position += nbytes


def _varint(content: bytes, position: int, begin: int) -> tuple[int, int]:
    """An unsigned 64-bit number -> (value, the position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, position
    raise FormatError(f"tokenizer.model: byte {begin + position}: a number does not end: cut, or not SentencePiece")


def _scalars(content: bytes, begin: int) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message in which the last of a number wins, as protobuf has it."""
    for number, _, value, _ in _fields(content, begin):
        yield number, value


def _as_bytes(value: int | bytes, wire: int, where: int) -> bytes:
    if wire != _BYTES or not isinstance(value, bytes):
        raise FormatError(f"tokenizer.model: byte {where}: a message has wire type {wire}: not a SentencePiece model")
    return value


def _raw(value: int | bytes, what: str) -> bytes:
    if not isinstance(value, bytes):
        raise FormatError(f"tokenizer.model: {what} is a number, wanted bytes")
    return value


def _text(value: int | bytes, what: str) -> str:
    try:
        return _raw(value, what).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"tokenizer.model: {what} is not UTF-8: {error.reason}") from None


def _number(value: int | bytes, what: str) -> int:
    if not isinstance(value, int):
        raise FormatError(f"tokenizer.model: {what} is bytes, wanted a number")
    return value


def _flag(value: int | bytes, what: str) -> bool:
    number = _number(value, what)
    if number > 1:
        raise FormatError(f"tokenizer.model: {what} is {number}, wanted 0 or 1")
    return number == 1


def encode_model(model: SentencePieceModel) -> bytes:
    """A tokenizer.model that says what `model` says; what training alone needs is left out."""
    specials = (model.unk_id, model.bos_id, model.eos_id, model.pad_id)
    trainer = (
        _varint_field(3, model.model_type)
        + _varint_field(4, len(model.pieces))
        + _varint_field(24, model.whitespace_as_suffix)
        + _varint_field(35, model.byte_fallback)
        + b"".join(_varint_field(40 + i, -1 if id_ is None else id_) for i, id_ in enumerate(specials))
        + b"".join(
            _bytes_field(45 + i, model.pieces[id_][0].encode()) for i, id_ in enumerate(specials) if id_ is not None
        )
    )
    normalizer = (
        _bytes_field(1, model.normalizer.encode())
        + _bytes_field(2, model.charsmap)
        + _varint_field(3, model.add_dummy_prefix)
        + _varint_field(4, model.remove_extra_whitespaces)
        + _varint_field(5, model.escape_whitespaces)
    )
    return _pieces(model.pieces) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _pieces(pieces: tuple[Piece, ...]) -> bytes:
    """Field 1 for each piece: text, score, and the type where it is not normal."""
    scores = struct.pack(f"<{len(pieces)}f", *(score for _, score, _ in pieces))
    fields: list[bytes] = []
    for i, (text, _, type_) in enumerate(pieces):
        raw, score = text.encode(), scores[4 * i : 4 * i + 4]
        kind = b"" if type_ == NORMAL else b"\x18" + _encode_varint(type_)
        content = b"".join((b"\x0a", _encode_varint(len(raw)), raw, b"\x15", score, kind))
        fields += (b"\x0a", _encode_varint(len(content)), content)
    return b"".join(fields)


def _encode_varint(value: int) -> bytes:
    """Seven bits a byte, least first; a negative number as its 64-bit complement."""
    if 0 <= value <= 0x7F:
        return _ONE_BYTE[value]
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(number: int, value: int) -> bytes:
    return _encode_varint(number << 3 | _VARINT) + _encode_varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _encode_varint(number << 3 | _BYTES) + _encode_varint(len(value)) + value
