"""A vocabulary under GGUF's `tokenizer.*` keys, model "llama", and back.

    tokenizer.ggml.tokens  scores  token_type      by id; padded to the embedding's rows with "[PAD{i}]", type 5, -10000
    tokenizer.ggml.{bos,eos,unknown,padding}_token_id  add_{bos,eos}_token  add_space_prefix     tokenizer.chat_template
    smelt.tokenizer.model                          SentencePiece's file byte for byte, which the tokens cannot rebuild

Sources: ggml docs/gguf.md; llama.cpp, llama-vocab.cpp (which wants all 256 byte pieces).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, ModelError, quoted
from ..formats.gguf import GGUFArray, GGUFValue
from ..formats.sentencepiece import BYTE, NORMAL, UNKNOWN, UNUSED, Piece, byte_of, decode_model
from .tokenizer import MODEL_FILE, SENTENCEPIECE, Tokenizer

ORIGINAL = "smelt.tokenizer.model"
PAD_SCORE = -10000.0
TEMPLATE_CAP = 1 << 20  # characters

_ROLES = {"bos_id": "bos", "eos_id": "eos", "unk_id": "unknown", "pad_id": "padding"}


def gguf_vocabulary(tokenizer: Tokenizer, n_vocab: int) -> dict[str, GGUFValue]:
    """Every tokenizer key of a file whose embedding has `n_vocab` rows.

    ModelError if the vocabulary is larger than that, or lacks byte pieces.
    """
    if len(tokenizer.pieces) > n_vocab:
        raise ModelError(f"the tokenizer has {len(tokenizer.pieces)} pieces, the embedding only {n_vocab} rows")
    n_bytes = len({byte_of(text) for text, _, type_ in tokenizer.pieces if type_ == BYTE})
    if n_bytes != 256:
        raise ModelError(f"the tokenizer has {n_bytes} byte pieces, llama.cpp needs all 256 in a GGUF vocabulary")
    padding = [(f"[PAD{i}]", PAD_SCORE, UNUSED) for i in range(len(tokenizer.pieces), n_vocab)]
    texts, scores, types = zip(*tokenizer.pieces, *padding, strict=True)
    keys = {
        "tokenizer.ggml.model": GGUFValue("string", "llama"),
        "tokenizer.ggml.pre": GGUFValue("string", "default"),
        "tokenizer.ggml.tokens": GGUFValue("[string]", list(texts)),
        "tokenizer.ggml.scores": GGUFValue("[f32]", list(scores)),
        "tokenizer.ggml.token_type": GGUFValue("[i32]", list(types)),
    }
    for attribute, role in _ROLES.items():
        if (id_ := getattr(tokenizer, attribute)) is not None:
            keys[f"tokenizer.ggml.{role}_token_id"] = GGUFValue("u32", id_)
    keys |= {
        "tokenizer.ggml.add_bos_token": GGUFValue("bool", tokenizer.add_bos),
        "tokenizer.ggml.add_eos_token": GGUFValue("bool", tokenizer.add_eos),
        "tokenizer.ggml.add_space_prefix": GGUFValue("bool", tokenizer.add_space_prefix),
    }
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = GGUFValue("string", tokenizer.chat_template)
    if MODEL_FILE in tokenizer.files:
        keys[ORIGINAL] = GGUFValue("[u8]", GGUFArray("u8", tokenizer.files[MODEL_FILE]))
    return keys


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Tokenizer:
    """The vocabulary in a file's keys (plain values, arrays as `GGUFArray`), padding left out.

    ModelError for a kind other than "llama"; FormatError for arrays of other types or lengths, ids outside the
    vocabulary, byte pieces that are none.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        raise ModelError(
            f"tokenizer.ggml.model is {quoted(kind)}: smelt reads SentencePiece vocabularies (llama); "
            "--skip-tokenizer converts the weights alone"
        )
    texts: list[str] = _array(metadata, "tokens", "string", None)
    scores: list[float] = _array(metadata, "scores", "f32", len(texts))
    types: list[int] = _array(metadata, "token_type", "i32", len(texts))
    for i, (text, score, type_) in enumerate(zip(texts, scores, types, strict=True)):
        _check_piece(i, text, score, type_)
    pieces: list[Piece] = list(zip(texts, scores, types, strict=True))
    n_pieces = len(pieces)
    while n_pieces and pieces[n_pieces - 1][0] == f"[PAD{n_pieces - 1}]" and types[n_pieces - 1] == UNUSED:
        n_pieces -= 1
    ids = {attribute: _id(metadata, role, len(pieces)) for attribute, role in _ROLES.items()}
    n_pieces = max(n_pieces, *(id_ + 1 for id_ in ids.values() if id_ is not None), 0)
    if ids["unk_id"] is None:
        ids["unk_id"] = next((i for i, type_ in enumerate(types) if type_ == UNKNOWN), None)
    return Tokenizer(
        SENTENCEPIECE,
        tuple(pieces[:n_pieces]),
        **ids,
        add_bos=_flag(metadata, "add_bos_token", True),
        add_eos=_flag(metadata, "add_eos_token", False),
        add_space_prefix=_flag(metadata, "add_space_prefix", True),
        chat_template=_template(metadata),
        files=_original(metadata, pieces[:n_pieces]),
    )


def _array(metadata: Mapping[str, Any], name: str, element_type: str, length: int | None) -> list[Any]:
    key = f"tokenizer.ggml.{name}"
    array = metadata.get(key)
    if not isinstance(array, GGUFArray) or array.element_type != element_type:
        got = f"an array of {array.element_type}" if isinstance(array, GGUFArray) else quoted(array)
        raise FormatError(f"{key} is {got}, wanted an array of {element_type}")
    if not array or (length is not None and len(array) != length):
        raise FormatError(f"{key} has {len(array)} elements, wanted {'some' if length is None else length}")
    return array.tolist()


def _check_piece(index: int, text: str, score: float, type_: int) -> None:
    where = f"tokenizer.ggml.tokens: token {index} ({quoted(text)})"
    if not NORMAL <= type_ <= BYTE:
        raise FormatError(f"{where} has type {type_}, wanted 1 to 6")
    if not math.isfinite(score):
        raise FormatError(f"{where} has score {score}")
    if type_ == BYTE and byte_of(text) is None:
        raise FormatError(f"{where} is no byte, wanted <0x00> to <0xFF>")


def _id(metadata: Mapping[str, Any], role: str, n_vocab: int) -> int | None:
    key = f"tokenizer.ggml.{role}_token_id"
    id_ = metadata.get(key)
    if id_ is None:
        return None
    if type(id_) is not int or not 0 <= id_ < n_vocab:
        raise FormatError(f"{key} is {quoted(id_)}, wanted a number below {n_vocab}")
    return id_


def _flag(metadata: Mapping[str, Any], name: str, absent: bool) -> bool:
    """A bool; `absent` is what llama.cpp takes for a "llama" vocabulary that leaves it out."""
    value = metadata.get(f"tokenizer.ggml.{name}", absent)
    if not isinstance(value, bool):
        raise FormatError(f"tokenizer.ggml.{name} is {quoted(value)}, wanted true or false")
    return value


def _template(metadata: Mapping[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and (not isinstance(template, str) or len(template) > TEMPLATE_CAP):
        raise FormatError(f"tokenizer.chat_template is no text of at most {TEMPLATE_CAP} characters")
    return template


def _original(metadata: Mapping[str, Any], pieces: list[Piece]) -> dict[str, bytes]:
    """The SentencePiece file that smelt put beside the tokens; FormatError if it has other pieces than they."""
    array = metadata.get(ORIGINAL)
    if array is None:
        return {}
    if not isinstance(array, GGUFArray) or array.element_type != "u8":
        raise FormatError(f"{ORIGINAL} is no array of u8")
    stored = decode_model(array.raw).pieces
    differing = [
        i
        for i, (one, other) in enumerate(zip(stored, pieces, strict=False))
        if one[2] in (NORMAL, BYTE) and one != other
    ]
    if differing or len(stored) > len(pieces):
        at = differing[0] if differing else len(pieces)
        raise FormatError(f"{ORIGINAL} and tokenizer.ggml.tokens disagree about token {at}: one of them was edited")
    return {MODEL_FILE: array.raw}
