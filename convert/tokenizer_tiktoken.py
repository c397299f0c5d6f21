"""Llama 3's tokenizer.model -> Tokenizer and back: ranks in the file, special tokens and the regular expression in Meta's code.

    id 0 .. n-1       the file's tokens by rank (128,000 of them)
    id n .. n+255     the special tokens, whose names differ between Llama 3 and 3.1 (and later)

128005 and 128011 have names in Meta's code (`<|step_id|>`, `<|image|>`) and are reserved in the published tokenizer.json,
whose names are taken here. Source: meta-llama/llama-models (llama3/tokenizer.py), the tokenizer.json of Llama 3 and 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from ..errors import ModelError, quoted
from ..formats.sentencepiece import CONTROL, NORMAL, USER_DEFINED, Piece
from ..formats.tiktoken import decode_ranks, encode_ranks, is_tiktoken
from .tokenizer import BYTE_LEVEL, MODEL_FILE, TOKENIZER_JSON, Encoder, Tokenizer
from .tokenizer_bpe import splitter
from .tokenizer_bytes import ALPHABET, bytes_of, encode_by_ranks, merges_of_ranks, text_of
from .tokenizer_pre import RULES
from .tokenizer_roles import special_roles

PRE = "llama-bpe"
N_SPECIAL = 256
_LLAMA4_RANKS = 200_000
_CANNOT = "tokenizer.model (ranks, as Meta wrote Llama 3's) cannot hold this vocabulary"

_LLAMA3 = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
_LLAMA3_1 = {**_LLAMA3, 4: "finetune_right_pad_id", 8: "eom_id", 10: "python_tag"}


def special_names(llama3_1: bool) -> list[str]:
    """The 256 special tokens by place: those with a name, and the reserved ones counted through the gaps."""
    names = _LLAMA3_1 if llama3_1 else _LLAMA3
    reserved = count()
    return [f"<|{names.get(i) or f'reserved_special_token_{next(reserved)}'}|>" for i in range(N_SPECIAL)]


def is_llama3_1(config: Mapping[str, Any]) -> bool:
    """Whether a config is that of Llama 3.1 or later, whose frequencies are scaled."""
    scaling = config.get("rope_scaling")
    return isinstance(scaling, Mapping) and scaling.get("rope_type") == "llama3"


def read_tiktoken(content: bytes, llama3_1: bool) -> Tokenizer:
    """A tokenizer.model's bytes; `llama3_1` for Llama 3.1 and later. FormatError if malformed; ModelError for Llama 4's."""
    tokens = decode_ranks(content)
    if len(tokens) == _LLAMA4_RANKS:
        raise ModelError(
            f"{MODEL_FILE}: {len(tokens)} ranks: Llama 4's, whose special tokens smelt does not know: convert the Hugging "
            "Face folder, or leave the vocabulary out with --skip-tokenizer"
        )
    texts = [text_of(token) for token in tokens]
    missing = sorted(ALPHABET - set(texts))
    if missing:
        raise ModelError(
            f"{MODEL_FILE}: {len(missing)} of the 256 bytes have no rank: not a vocabulary that covers every text"
        )
    normal: list[Piece] = [(text, 0.0, NORMAL) for text in texts]
    pieces = (*normal, *((name, 0.0, CONTROL) for name in special_names(llama3_1)))
    return Tokenizer(
        BYTE_LEVEL,
        pieces,
        bos_id=len(texts),
        eos_id=len(texts) + 1,
        unk_id=None,
        add_space_prefix=False,
        files={MODEL_FILE: content},
        special_ids=special_roles(pieces),
        merges=tuple(merges_of_ranks(texts)),
        pre=PRE,
    )


def ranks_file(tokenizer: Tokenizer) -> bytes:
    """The ranks of a byte-level vocabulary as tokenizer.model: the original where there is one.

    ModelError where ids are not ranks: other rules than Llama 3's, merges that ranks do not give, special tokens that
    do not follow the others.
    """
    original = tokenizer.files.get(MODEL_FILE)
    if original is not None and is_tiktoken(original):
        return original
    if tokenizer.pre != PRE:
        raise ModelError(f"{_CANNOT}: it cuts words by the rules of {quoted(tokenizer.pre)}, Meta's code by {PRE}")
    content = _lines(tokenizer)
    texts = [text_of(token) for token in decode_ranks(content)]
    if merges_of_ranks(texts) != list(tokenizer.merges):
        raise ModelError(f"{_CANNOT}: its merges are not those that the order of its tokens gives")
    return content


def rebuilds(tokenizer: Tokenizer) -> bool:
    """Whether `ranks_file` would give the original again without having it: for ranks in their usual order, always."""
    if TOKENIZER_JSON in tokenizer.files:
        return False
    try:
        return _lines(tokenizer) == tokenizer.files[MODEL_FILE]
    except ModelError:
        return False


def _lines(tokenizer: Tokenizer) -> bytes:
    """The tokens before the special ones as ranks."""
    types = [type_ for _, _, type_ in tokenizer.pieces]
    n_ranks = next((i for i, type_ in enumerate(types) if type_ != NORMAL), len(types))
    if not set(types[n_ranks:]) <= {CONTROL, USER_DEFINED}:
        raise ModelError(f"{_CANNOT}: token {n_ranks} is special, and tokens of the file follow it")
    texts = [text for text, _, _ in tokenizer.pieces[:n_ranks]]
    tokens = [bytes_of(text) for text in texts]
    whole = [token for token in tokens if token is not None]
    if len(whole) != len(tokens):
        at = tokens.index(None)
        raise ModelError(f"{_CANNOT}: token {at} ({quoted(texts[at])}) is not made of bytes")
    return encode_ranks(whole)


def ranks_encoder(content: bytes) -> Encoder:
    """The ids as tiktoken's definition has them, by the ranks alone: slow, and independent of the merges."""
    ranks = {token: rank for rank, token in enumerate(decode_ranks(content))}
    words_of = splitter(RULES[PRE])

    def encode(text: str) -> list[int]:
        return [id_ for word in words_of(text) for id_ in encode_by_ranks(ranks, word)]

    return encode
