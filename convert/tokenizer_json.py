"""A SentencePiece BPE vocabulary as the `tokenizers` library's tokenizer.json.

    normalizer      Prepend U+2581 | Replace " " with U+2581    (never Metaspace: it skips a text that begins so)
    model           BPE, merges by falling score, the longer left part first; byte_fallback; fuse_unk
    post_processor  BOS before, EOS after                  decoder  Replace | ByteFallback | Fuse | Strip one space

A merge is any split of a piece into two pieces: SentencePiece tries them all, and takes the best score, leftmost first.
A user-defined piece is cut out of the text before any merge, the longest at the leftmost place, by both libraries.
`transformers` opens the folder as PreTrainedTokenizerFast, whose ids are SentencePiece's, but for one convention of that
library: a special token's name inside a text is the token. Source: tokenizers (tokenizer.json), transformers
(tokenizer_config.json), google/sentencepiece (bpe_model.cc).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, quoted
from ..formats.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, byte_of
from .tokenizer import Tokenizer

SPACE = "\u2581"
LENGTH_CAP = 512  # characters; finding merges takes time with its square, and LLaMA's longest piece has 16

_CANNOT = "tokenizer.json cannot hold this vocabulary exactly"


def tokenizer_json(tokenizer: Tokenizer) -> bytes:
    """The file's content. ModelError for a vocabulary that it cannot hold exactly."""
    merges = merges_of(tokenizer.pieces)
    _check_exact(tokenizer, merges)
    n_bytes = len({byte_of(text) for text, _, type_ in tokenizer.pieces if type_ == BYTE})
    prefix = [{"type": "Prepend", "prepend": SPACE}] if tokenizer.add_space_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if tokenizer.add_space_prefix else []
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(i, text, special=type_ != USER_DEFINED, normalized=type_ == USER_DEFINED)
            for i, (text, _, type_) in enumerate(tokenizer.pieces)
            if type_ in (UNKNOWN, CONTROL, USER_DEFINED)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}],
        },
        "pre_tokenizer": None,
        "post_processor": post_processor(tokenizer),
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
    return dump(content)


def merges_of(pieces: tuple[Piece, ...]) -> list[tuple[str, str]]:
    """Every split of a mergeable piece into two of them, best score first; of one piece's, the longest left part first."""
    scores = {text: score for text, score, type_ in pieces if type_ in (NORMAL, UNUSED)}
    longest = max(map(len, scores), default=0)
    if longest > LENGTH_CAP:
        raise ModelError(f"the tokenizer has a piece of {longest} characters, smelt takes at most {LENGTH_CAP}")
    ids = {text: i for i, (text, _, _) in enumerate(pieces)}
    found = [
        (-score, ids[text], -cut, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [(left, right) for *_, left, right in sorted(found)]


def _check_exact(tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> None:
    """ModelError naming what of SentencePiece's behaviour tokenizer.json has no words for."""
    made = {left + right for left, right in merges}
    parts = {part for merge in merges for part in merge}
    seen: set[str] = set()
    for i, (text, _, type_) in enumerate(tokenizer.pieces):
        if text in seen:
            raise ModelError(f"{_CANNOT}: piece {i} ({quoted(text)}) is there twice")
        seen.add(text)
        if type_ == USER_DEFINED and tokenizer.add_space_prefix:
            raise ModelError(
                f"{_CANNOT}: piece {i} ({quoted(text)}) is user-defined, and is cut out before the space is added"
            )
        if type_ == UNUSED and (len(text) == 1 or text in made | parts):
            raise ModelError(f"{_CANNOT}: piece {i} ({quoted(text)}) is unused, but a step on the way to others")
    _check_ties({text: score for text, score, _ in tokenizer.pieces}, merges)


def _check_ties(scores: Mapping[str, float], merges: list[tuple[str, str]]) -> None:
    """ModelError where two pieces of one score could be made from overlapping text: SentencePiece takes the leftmost.

    Code Llama's infilling pieces all score 0, and none of them begins with what another ends with.
    """
    tied: dict[float, list[tuple[str, str]]] = {}
    for left, right in merges:
        tied.setdefault(scores[left + right], []).append((left, right))
    tied = {score: found for score, found in tied.items() if len({left + right for left, right in found}) > 1}
    texts = {left + right: score for score, found in tied.items() for left, right in found}
    for score, found in tied.items():
        ends: dict[str, str] = {}  # right part -> a piece that it ends
        for left, right in found:
            if ends.setdefault(right, left + right) != left + right:
                ends[right] = ""  # several
        for left, right in found:
            other = ends.get(left, left + right)
            if other != left + right:
                raise ModelError(
                    f"{_CANNOT}: pieces {quoted(left + right)} and {quoted(other or left)} both score {score}"
                )
    for left, right in merges:
        for part in (left, right):
            if part in texts and scores[left + right] > texts[part]:
                raise ModelError(
                    f"{_CANNOT}: pieces {quoted(left + right)} outscores {quoted(part)}, which it is made of"
                )


def specials(tokenizer: Tokenizer) -> dict[int, str]:
    """The tokens that `transformers` looks for in a text and skips when decoding."""
    return {i: text for i, (text, _, type_) in enumerate(tokenizer.pieces) if type_ in (UNKNOWN, CONTROL)}


def added_token(id_: int, text: str, special: bool, normalized: bool = False) -> dict[str, Any]:
    """An entry of added_tokens; a `normalized` one is looked for after the normalizer, its spaces escaped as a piece's are."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": id_, "content": text, **plain, "normalized": normalized, "special": special}


def post_processor(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """tokenizer.json's "post_processor": BOS and EOS where the tokenizer adds them; None where it adds nothing."""
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


def dump(content: dict[str, Any]) -> bytes:
    """JSON as these files have it."""
    return (json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n").encode()
