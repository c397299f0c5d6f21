"""Byte-level BPE as the `tokenizers` library has it: tokenizer.json written, and its encoder, from the file or the pieces.

    normalizer, pre_tokenizer   the rules that `Tokenizer.pre` names (`tokenizer_pre`)
    model                       BPE over the texts by id; merges in order; ignore_merges as the rules say
    added_tokens                control pieces as special, user-defined ones as not; left out of the model's own vocabulary
                                where they come after all others, as the published files have it
    post_processor              BOS before, EOS after          decoder  ByteLevel

Source: tokenizers (tokenizer.json).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import ModelError, quoted
from ..formats.sentencepiece import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from .tokenizer import TOKENIZER_JSON, Encoder, Tokenizer
from .tokenizer_bytes import bytes_of
from .tokenizer_json import added_token, dump, post_processor
from .tokenizer_pre import RULES, Rules, normalizer_json, pre_tokenizer_json, rules_of

SPECIAL = (UNKNOWN, CONTROL)


def byte_level_json(tokenizer: Tokenizer) -> bytes:
    """tokenizer.json out of the pieces. ModelError where the rules that cut words are not known."""
    content = _frame(known_rules(tokenizer), tokenizer)
    vocab, added = _vocab(tokenizer)
    content["added_tokens"] = [added_token(i, text, special) for i, text, special in added]
    content["model"] |= {"vocab": vocab, "merges": list(tokenizer.merges)}
    return dump(content)


def json_encoder(content: bytes) -> Encoder:
    """The encoder of a whole tokenizer.json; ModelError where the library refuses it."""
    fast = _library_tokenizer(content)
    fast.no_truncation()
    fast.no_padding()
    return _plain_encoder(fast)


def pieces_encoder(tokenizer: Tokenizer) -> Encoder:
    """The encoder of pieces, merges and the rules' name: all that a GGUF file's own keys say. ModelError as above."""
    from tokenizers import AddedToken
    from tokenizers.models import BPE

    rules = known_rules(tokenizer)
    vocab, added = _vocab(tokenizer)
    fast = _library_tokenizer(dump(_frame(rules, tokenizer)))
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in tokenizer.merges)]
    try:
        fast.model = BPE(vocab=vocab, merges=merges, ignore_merges=rules.ignore_merges)
    except Exception as error:  # the library has no narrower class
        raise ModelError(f"the tokenizer's merges: {quoted(str(error))}") from error
    for special in (True, False):
        tokens = [AddedToken(text, special=special, normalized=False) for _, text, is_ in added if is_ is special]
        (fast.add_special_tokens if special else fast.add_tokens)(tokens)
    return _plain_encoder(fast)


def splitter(rules: Rules) -> Callable[[str], list[bytes]]:
    """A function from a text to its words' bytes."""
    frame = {**_empty_frame(), "normalizer": normalizer_json(rules), "pre_tokenizer": pre_tokenizer_json(rules)}
    fast = _library_tokenizer(dump(frame))

    def words_of(text: str) -> list[bytes]:
        normal = text if fast.normalizer is None else fast.normalizer.normalize_str(text)
        words = (bytes_of(word) for word, _ in fast.pre_tokenizer.pre_tokenize_str(normal))
        return [word for word in words if word is not None]

    return words_of


def known_rules(tokenizer: Tokenizer) -> Rules:
    """The rules that `tokenizer.pre` names; ModelError where smelt knows none by that name."""
    rules = None if tokenizer.pre is None else rules_of(tokenizer.pre)
    if rules is None:
        raise ModelError(no_rules(tokenizer.pre))
    return rules


def no_rules(pre: str | None) -> str:
    """What to say about a pre-tokenizer that is none of the known ones."""
    what = "is none that has a name" if pre is None else f"has a name that smelt does not know ({quoted(pre)})"
    return (
        f"the tokenizer's pre-tokenizer (how it cuts words) {what}: say which with --pre NAME ({' '.join(RULES)}), or "
        "leave the vocabulary out with --skip-tokenizer"
    )


def _plain_encoder(fast: Any) -> Encoder:
    fast.encode_special_tokens = True  # a special token's name in a text is text, as in llama.cpp and SentencePiece

    def encode(text: str) -> list[int]:
        with refusing_panics():
            ids: list[int] = fast.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _library_tokenizer(content: bytes) -> Any:
    from tokenizers import Tokenizer as LibraryTokenizer

    try:
        with refusing_panics():
            return LibraryTokenizer.from_str(content.decode())
    except ModelError:
        raise
    except Exception as error:  # the library has no narrower class
        raise ModelError(f"{TOKENIZER_JSON}: the tokenizers library refuses it: {quoted(str(error))}") from error


@contextmanager
def refusing_panics() -> Iterator[None]:
    """ModelError in place of a panic of the library, as a regular expression that backtracks without end gives.

    A panic is no Exception, and prints its stack on stderr before it can be caught: nothing comes out there meanwhile.
    """
    try:
        aside = os.dup(2)
    except OSError:  # there is no stderr to keep clean
        aside = -1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        if aside >= 0:
            os.dup2(nowhere, 2)
        yield
    except BaseException as error:
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise ModelError(
            f"{TOKENIZER_JSON}: the tokenizers library gives up on its regular expression: {quoted(str(error))}: leave the "
            "vocabulary out with --skip-tokenizer"
        ) from None
    finally:
        os.close(nowhere)
        if aside >= 0:
            os.dup2(aside, 2)
            os.close(aside)


def _vocab(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[int, str, bool]]]:
    """-> ({text: id} of the model, [(id, text, special)] of the added tokens)."""
    pieces = tokenizer.pieces
    added = [
        (i, text, type_ in SPECIAL) for i, (text, _, type_) in enumerate(pieces) if type_ in (*SPECIAL, USER_DEFINED)
    ]
    first = len(pieces) - len(added)
    holes = {i for i, (text, _, type_) in enumerate(pieces) if type_ == UNUSED and text == f"[PAD{i}]"}
    in_a_tail = not holes and all(type_ != NORMAL for _, _, type_ in pieces[first:])
    if in_a_tail:
        names = {text for _, text, _ in added}
        in_a_tail = not any(merge.replace(" ", "", 1) in names for merge in tokenizer.merges)
    kept = pieces[:first] if in_a_tail else pieces
    vocab = {text: i for i, (text, _, _) in enumerate(kept) if i not in holes}
    if len(vocab) + len(holes) != len(kept):
        raise ModelError("the tokenizer has two tokens of the same text: no file can hold both")
    return vocab, added


def _empty_frame() -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {},
            "merges": [],
        },
    }


def _frame(rules: Rules, tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json without its tokens."""
    frame = _empty_frame()
    frame["normalizer"] = normalizer_json(rules)
    frame["pre_tokenizer"] = pre_tokenizer_json(rules)
    frame["post_processor"] = post_processor(tokenizer)
    frame["model"]["ignore_merges"] = rules.ignore_merges
    return frame
