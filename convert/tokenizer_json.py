"""A SentencePiece BPE vocabulary as the `tokenizers` library's tokenizer.json, and the files around it.

    normalizer      Prepend U+2581 | Replace " " with U+2581    (never Metaspace: it skips a text that begins so)
    model           BPE, merges by falling score, the longer left part first; byte_fallback; fuse_unk
    post_processor  BOS before, EOS after                  decoder  Replace | ByteFallback | Fuse | Strip one space

A merge is any split of a piece into two pieces: SentencePiece tries them all, and takes the best score, leftmost first.
`transformers` opens the folder as PreTrainedTokenizerFast, whose ids are SentencePiece's, but for one convention of that
library: a special token's name inside a text is the token. Source: tokenizers (tokenizer.json), transformers
(tokenizer_config.json), google/sentencepiece (bpe_model.cc).
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import ModelError, quoted
from ..formats.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, byte_of
from .tokenizer import MODEL_FILE, Tokenizer

SPACE = "\u2581"


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """The file's content. ModelError for a vocabulary that it cannot hold exactly."""
    merges = merges_of(tokenizer.pieces)
    _check_exact(tokenizer.pieces, merges)
    n_bytes = len({byte_of(text) for text, _, type_ in tokenizer.pieces if type_ == BYTE})
    prefix = [{"type": "Prepend", "prepend": SPACE}] if tokenizer.add_space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.add_space_prefix else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, text) for i, text in _specials(tokenizer).items()],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "post_processor": _post_processor(tokenizer),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if tokenizer.unk_id is None else tokenizer.pieces[tokenizer.unk_id][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": n_bytes == 256,
            "ignore_merges": False,
            "vocab": {text: i for i, (text, _, _) in enumerate(tokenizer.pieces)},
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }
    return _dump(content)


def merges_of(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """Every split of a mergeable piece into two of them, best score first; of one piece's, the longest left part first."""
    scores = {text: score for text, score, type_ in pieces if type_ in (NORMAL, USER_DEFINED, UNUSED)}
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    found = [
        (-score, ids[text], -cut, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _check_exact(pieces: tuple[Piece, ...], merges: list[tuple[str, str]]) -> None:
    """ModelError naming what of SentencePiece's behaviour tokenizer.json has no words for."""
    where = "tokenizer.json cannot hold this vocabulary exactly"
    merged = {left + right for left, right in merges}
    parts = {part for merge in merges for part in merge}
    by_score: dict[float, str] = {}
    seen: set[str] = set()
    for i, (text, score, type_) in enumerate(pieces):
        if text in seen:
            raise ModelError(f"{where}: piece {i} ({quoted(text)}) is there twice")
        seen.add(text)
        if type_ == USER_DEFINED:
            raise ModelError(
                f"{where}: piece {i} ({quoted(text)}) is user-defined, and is cut out before the space is added"
            )
        if type_ == UNUSED and (len(text) == 1 or text in merged | parts):
            raise ModelError(f"{where}: piece {i} ({quoted(text)}) is unused, but a step on the way to others")
        if text in merged and by_score.setdefault(score, text) != text:
            raise ModelError(f"{where}: pieces {quoted(by_score[score])} and {quoted(text)} both score {score}")


def _specials(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that `transformers` looks for in a text and skips when decoding."""
    return {i: text for i, (text, _, type_) in enumerate(tokenizer.pieces) if type_ in (UNKNOWN, CONTROL)}


def _added_token(id_: int, text: str) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id_, "content": text, **plain, "special": True}


def _post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    before = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    after = [tokenizer.eos_id] if tokenizer.add_eos and tokenizer.eos_id is not None else []
    if not before and not after:
        return None

    def template(sequence: str, segment: int) -> list[dict[str, Any]]:
        tokens = [
            [{"SpecialToken": {"id": tokenizer.pieces[i][0], "type_id": segment}} for i in ids]
            for ids in (before, after)
        ]
        return [*tokens[0], {"Sequence": {"id": sequence, "type_id": segment}}, *tokens[1]]

    names = {tokenizer.pieces[i][0]: i for i in before + after}
    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in names.items()},
    }


def hugging_face_files(tokenizer: Tokenizer, model_max_length: int) -> dict[str, bytes]:
    """{file name: content} of everything AutoTokenizer wants, and tokenizer.model itself.

    ModelError for a vocabulary that tokenizer.json cannot hold exactly.
    """
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    names = {f"{role}_token": tokenizer.pieces[i][0] for role, i in roles.items() if i is not None}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "added_tokens_decoder": {
            str(i): {key: value for key, value in _added_token(i, text).items() if key != "id"}
            for i, text in _specials(tokenizer).items()
        },
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
    }
    if tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return {
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": _dump(config),
        "special_tokens_map.json": _dump(names),
        MODEL_FILE: tokenizer.sentencepiece(),
    }


def _dump(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()
