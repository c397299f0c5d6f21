"""A vocabulary under GGUF's `tokenizer.*` keys, and back.

    tokenizer.ggml.model       "llama" (SentencePiece BPE)                 "gpt2" (byte-level BPE)
                  .pre         "default"                                   the rules' name (`tokenizer_pre`)
                  .tokens      pieces                                      bytes as printable characters; special ones as is
                  .token_type  by id, as SentencePiece counts: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte
                  .scores      one a piece            .merges              "left right", best first
                  .{bos,eos,unknown,padding,eot,eom,fim_pre,fim_suf,fim_mid}_token_id  .add_{bos,eos}_token  .add_space_prefix
    tokenizer.chat_template
    smelt.tokenizer.model      SentencePiece's file byte for byte, which the tokens cannot rebuild; Llama 3's where they do not
    smelt.files.{name}         the other files of the folder that the tokenizer came from, byte for byte

Tokens are padded to the embedding's rows with "[PAD{i}]", type 5 (score -10000). A user-defined SentencePiece piece has
spaces for U+2581 here, since llama.cpp looks for it in the text before spaces are escaped.

Sources: ggml docs/gguf.md; llama.cpp, llama-vocab.cpp (which wants all 256 byte pieces).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, ModelError, quoted
from ..formats.gguf import GGUFArray, GGUFValue
from ..formats.sentencepiece import BYTE, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, byte_of, decode_model
from ..formats.tiktoken import is_tiktoken
from .side_files import SIDE_FILES
from .tokenizer import BYTE_LEVEL, MODEL_FILE, SENTENCEPIECE, Tokenizer
from .tokenizer_bpe import no_rules
from .tokenizer_bytes import ALPHABET
from .tokenizer_folder import agreeing_files
from .tokenizer_json import SPACE
from .tokenizer_keys import array, carried_files, file_keys, flag, numbers, special_id, strings, template
from .tokenizer_pre import rules_of
from .tokenizer_proof import prove
from .tokenizer_roles import ROLES
from .tokenizer_tiktoken import rebuilds

ORIGINAL = "smelt.tokenizer.model"
PAD_SCORE = -10000.0

_ROLES = {"bos_id": "bos", "eos_id": "eos", "unk_id": "unknown", "pad_id": "padding"}


def gguf_vocabulary(tokenizer: Tokenizer, n_vocab: int) -> dict[str, GGUFValue]:
    """Every tokenizer key of a file whose embedding has `n_vocab` rows, proven to give the source's ids.

    ModelError if the vocabulary is larger than that, lacks byte pieces, cuts words by rules without a name, or if ids change.
    """
    if len(tokenizer.pieces) > n_vocab:
        raise ModelError(f"the tokenizer has {len(tokenizer.pieces)} pieces, the embedding only {n_vocab} rows")
    keys = _llama_keys(tokenizer, n_vocab) if tokenizer.kind == SENTENCEPIECE else _gpt2_keys(tokenizer, n_vocab)
    ids = {role: getattr(tokenizer, attribute) for attribute, role in _ROLES.items()} | dict(tokenizer.special_ids)
    keys |= {f"tokenizer.ggml.{role}_token_id": GGUFValue("u32", id_) for role, id_ in ids.items() if id_ is not None}
    keys |= {
        "tokenizer.ggml.add_bos_token": GGUFValue("bool", tokenizer.add_bos),
        "tokenizer.ggml.add_eos_token": GGUFValue("bool", tokenizer.add_eos),
        "tokenizer.ggml.add_space_prefix": GGUFValue("bool", tokenizer.add_space_prefix),
    }
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = GGUFValue("string", tokenizer.chat_template)
    if tokenizer.kind == SENTENCEPIECE or rules_of(tokenizer.pre or "") is not None:
        read_back = read_gguf_vocabulary({key: value.value for key, value in keys.items()})
        prove(tokenizer, read_back.encode, "the GGUF vocabulary")
    original = tokenizer.files.get(MODEL_FILE)
    if original is not None and not (is_tiktoken(original) and rebuilds(tokenizer)):
        keys[ORIGINAL] = GGUFValue("[u8]", GGUFArray("u8", original))
    return keys | file_keys({name: content for name, content in tokenizer.files.items() if name != MODEL_FILE})


def vocabulary_notes(tokenizer: Tokenizer) -> tuple[str, ...]:
    """What a GGUF vocabulary made of this one cannot say, or cannot be shown to say."""
    if tokenizer.kind != BYTE_LEVEL or tokenizer.pre is None:
        return ()
    rules = rules_of(tokenizer.pre)
    if rules is None:
        return (
            f"smelt knows no rules by the pre-tokenizer's name {quoted(tokenizer.pre)}: a GGUF file bears it, and its ids "
            "were not compared with the source's",
        )
    if rules.normalizer:
        return (
            f"the tokenizer composes a text's characters first ({' '.join(rules.normalizer)}), llama.cpp does not: decomposed "
            "text has other ids there",
        )
    return ()


def read_gguf_vocabulary(metadata: Mapping[str, Any]) -> Tokenizer:
    """The vocabulary in a file's keys (plain values, arrays as `GGUFArray`), padding left out.

    ModelError for a kind other than "llama" and "gpt2"; FormatError for arrays of other types or lengths, ids outside the
    vocabulary, byte pieces that are none, carried files that disagree with the tokens.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2"):
        raise ModelError(
            f"tokenizer.ggml.model is {quoted(kind)}: smelt reads SentencePiece BPE (llama) and byte-level BPE (gpt2); "
            "--skip-tokenizer converts the weights alone"
        )
    pieces = _llama_pieces(metadata) if kind == "llama" else _gpt2_pieces(metadata)
    n_pieces = len(pieces)
    while n_pieces and pieces[n_pieces - 1][0] == f"[PAD{n_pieces - 1}]" and pieces[n_pieces - 1][2] == UNUSED:
        n_pieces -= 1
    ids = {attribute: special_id(metadata, role, len(pieces)) for attribute, role in _ROLES.items()}
    roles = {role: id_ for role in ROLES if (id_ := special_id(metadata, role, len(pieces))) is not None}
    n_pieces = max(n_pieces, *(id_ + 1 for id_ in [*ids.values(), *roles.values()] if id_ is not None), 0)
    if ids["unk_id"] is None and kind == "llama":
        ids["unk_id"] = next((i for i, (_, _, type_) in enumerate(pieces) if type_ == UNKNOWN), None)
    pre = metadata.get("tokenizer.ggml.pre") if kind == "gpt2" else None
    tokenizer = Tokenizer(
        SENTENCEPIECE if kind == "llama" else BYTE_LEVEL,
        tuple(pieces[:n_pieces]),
        **ids,
        add_bos=flag(metadata, "add_bos_token", kind == "llama" or pre == "llama-bpe"),
        add_eos=flag(metadata, "add_eos_token", False),
        add_space_prefix=flag(metadata, "add_space_prefix", kind == "llama"),
        chat_template=template(metadata),
        files=_original(metadata, pieces[:n_pieces], kind),
        special_ids=roles,
        merges=_merges(metadata) if kind == "gpt2" else (),
        pre=pre if isinstance(pre, str) else None,
    )
    return agreeing_files(tokenizer, carried_files(metadata, SIDE_FILES))


def _llama_keys(tokenizer: Tokenizer, n_vocab: int) -> dict[str, GGUFValue]:
    n_bytes = len({byte_of(text) for text, _, type_ in tokenizer.pieces if type_ == BYTE})
    if n_bytes != 256:
        raise ModelError(f"the tokenizer has {n_bytes} byte pieces, llama.cpp needs all 256 in a GGUF vocabulary")
    texts, scores, types = zip(*tokenizer.pieces, *_padding(tokenizer, n_vocab), strict=True)
    spaced = [
        text.replace(SPACE, " ") if type_ == USER_DEFINED else text for text, type_ in zip(texts, types, strict=True)
    ]
    return {
        "tokenizer.ggml.model": GGUFValue("string", "llama"),
        "tokenizer.ggml.pre": GGUFValue("string", "default"),
        "tokenizer.ggml.tokens": strings(spaced),
        "tokenizer.ggml.scores": numbers("f32", scores),
        "tokenizer.ggml.token_type": numbers("i32", types),
    }


def _gpt2_keys(tokenizer: Tokenizer, n_vocab: int) -> dict[str, GGUFValue]:
    if tokenizer.pre is None:
        raise ModelError(no_rules(None))
    missing = ALPHABET - {text for text, _, _ in tokenizer.pieces}
    if missing or not tokenizer.merges:
        what = f"has no token for {len(missing)} of the 256 bytes" if missing else "has no merges"
        raise ModelError(f"the tokenizer {what}, llama.cpp needs them in a GGUF vocabulary")
    texts, _, types = zip(*tokenizer.pieces, *_padding(tokenizer, n_vocab), strict=True)
    return {
        "tokenizer.ggml.model": GGUFValue("string", "gpt2"),
        "tokenizer.ggml.pre": GGUFValue("string", tokenizer.pre),
        "tokenizer.ggml.tokens": strings(texts),
        "tokenizer.ggml.token_type": numbers("i32", types),
        "tokenizer.ggml.merges": strings(tokenizer.merges),
    }


def _padding(tokenizer: Tokenizer, n_vocab: int) -> list[Piece]:
    return [(f"[PAD{i}]", PAD_SCORE, UNUSED) for i in range(len(tokenizer.pieces), n_vocab)]


def _llama_pieces(metadata: Mapping[str, Any]) -> list[Piece]:
    texts: list[str] = array(metadata, "tokens", "string", None)
    scores: list[float] = array(metadata, "scores", "f32", len(texts))
    types: list[int] = array(metadata, "token_type", "i32", len(texts))
    for i, (text, score, type_) in enumerate(zip(texts, scores, types, strict=True)):
        if type_ == NORMAL and math.isfinite(score):
            continue
        if flaw := _flaw(text, score, type_):
            raise FormatError(f"tokenizer.ggml.tokens: token {i} ({quoted(text)}) {flaw}")
        if type_ == USER_DEFINED:
            texts[i] = text.replace(" ", SPACE)
    return list(zip(texts, scores, types, strict=True))


def _flaw(text: str, score: float, type_: int) -> str:
    """What is wrong with a token; empty where nothing is."""
    if not NORMAL <= type_ <= BYTE:
        return f"has type {type_}, wanted 1 to 6"
    if not math.isfinite(score):
        return f"has score {score}"
    return "is no byte, wanted <0x00> to <0xFF>" if type_ == BYTE and byte_of(text) is None else ""


def _gpt2_pieces(metadata: Mapping[str, Any]) -> list[Piece]:
    texts: list[str] = array(metadata, "tokens", "string", None)
    types: list[int] = array(metadata, "token_type", "i32", len(texts))
    if len(set(texts)) != len(texts):
        raise FormatError("tokenizer.ggml.tokens: two tokens have the same text")
    at = next((i for i, type_ in enumerate(types) if not NORMAL <= type_ < BYTE), None)
    if at is not None or "" in texts:
        at = texts.index("") if at is None else at
        what = f"token {at} ({quoted(texts[at])})"
        raise FormatError(f"tokenizer.ggml.tokens: {what} is empty, or its type {types[at]} is not 1 to 5")
    scores = [PAD_SCORE if type_ == UNUSED else 0.0 for type_ in types]
    return list(zip(texts, scores, types, strict=True))


def _merges(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    merges: list[str] = array(metadata, "merges", "string", None)
    bad = next((i for i, merge in enumerate(merges) if merge.count(" ") != 1 or len(merge) < 3), None)
    if bad is not None:
        raise FormatError(f"tokenizer.ggml.merges: merge {bad} ({quoted(merges[bad])}) is not two tokens")
    return tuple(merges)


def _original(metadata: Mapping[str, Any], pieces: list[Piece], kind: str) -> dict[str, bytes]:
    """The tokenizer.model that smelt put beside the tokens; FormatError if it has other pieces than they."""
    found = metadata.get(ORIGINAL)
    if found is None:
        return {}
    if not isinstance(found, GGUFArray) or found.element_type != "u8":
        raise FormatError(f"{ORIGINAL} is no array of u8")
    if kind == "gpt2":
        return {MODEL_FILE: found.raw}
    stored = decode_model(found.raw).pieces
    differing = [
        i
        for i, (one, other) in enumerate(zip(stored, pieces, strict=False))
        if one[2] in (NORMAL, BYTE) and one != other
    ]
    if differing or len(stored) > len(pieces):
        at = differing[0] if differing else len(pieces)
        raise FormatError(f"{ORIGINAL} and tokenizer.ggml.tokens disagree about token {at}: one of them was edited")
    return {MODEL_FILE: found.raw}
