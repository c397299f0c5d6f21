"""tokenizer.json, or vocab.json and merges.txt -> Tokenizer, where what they say is one of the two kinds.

    byte_fallback, every split a merge   SentencePiece's BPE in other words; scores by the order of the merges
    ByteLevel the last pre-tokenizer     byte-level BPE; the rules that cut words get their name (`tokenizer_pre`)

Source: tokenizers (tokenizer.json).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError, ModelError, quoted
from ..formats.sentencepiece import BYTE, CONTROL, COUNT_CAP, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Piece, byte_of
from .tokenizer import BYTE_LEVEL, SENTENCEPIECE, Tokenizer
from .tokenizer_json import SPACE, merges_of
from .tokenizer_pre import RULES, name_of

ADDED_SCORE = -1000.0  # llama.cpp's converter gives it to tokens that are in no SentencePiece file
PAD_SCORE = -10000.0
MERGES_CAP = 1 << 22
ADDED_CAP = 1 << 14  # Gemma 3 has 6,414

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Tokens:
    """What both kinds share: texts by id, {id: special} of the added ones, merges in order."""

    texts: Mapping[int, str]
    added: Mapping[int, bool]
    merges: Pairs


def read_tokenizer_json(content: Mapping[str, Any], where: str) -> Tokenizer | None:
    """A parsed tokenizer.json; `where` is its path. None for another kind; FormatError for what is malformed."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return None
    if model.get("byte_fallback") is True:
        return _sentencepiece(content, model, _tokens(content, model, where), where)
    try:
        if all(step.get("type") != "ByteLevel" for step in _steps(content.get("pre_tokenizer"), "pretokenizers")):
            return None
        return _byte_level(content, model, _tokens(content, model, where), where)
    except RecursionError:
        raise FormatError(f"{where}: is nested too deeply") from None


def read_vocab_merges(
    vocab: Mapping[str, Any],
    merges: bytes,
    added: Mapping[int, tuple[str, bool]],
    special: Collection[Any],
    pre: str | None,
    where: str,
) -> Tokenizer:
    """A vocab.json, a merges.txt, added tokens by id and the names of special ones; `pre` names the rules."""
    try:
        lines = merges.decode().split("\n")
    except UnicodeDecodeError:
        raise FormatError(f"{where}: merges.txt is not UTF-8") from None
    pairs = _pairs([line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")])
    if pairs is None:
        raise FormatError(f"{where}: merges.txt has a line that is no pair of tokens")
    ids = _ids(vocab, f"{where}: vocab.json")
    extra = {id_: is_special for id_, (_, is_special) in added.items()}
    extra |= {id_: True for id_, text in ids.items() if text in special}
    texts = {**ids, **{id_: text for id_, (text, _) in added.items()}}
    _check_texts(texts, where)
    tokens = Tokens(texts, extra, pairs)
    return Tokenizer(
        BYTE_LEVEL,
        _pieces(tokens),
        bos_id=None,
        eos_id=None,
        unk_id=None,
        add_bos=False,
        add_space_prefix=False,
        merges=tuple(f"{left} {right}" for left, right in pairs),
        pre=pre,
    )


def _tokens(content: Mapping[str, Any], model: Mapping[str, Any], where: str) -> Tokens:
    vocab, merges = model.get("vocab"), _pairs(model.get("merges"))
    if not isinstance(vocab, dict) or merges is None:
        raise FormatError(f"{where}: its model has no vocabulary, or merges that are no pairs")
    if len(merges) > MERGES_CAP:
        raise FormatError(f"{where}: {len(merges)} merges, at most {MERGES_CAP} are read: is it the right file?")
    texts = _ids(vocab, where)
    added = content.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > ADDED_CAP:
        got = f"has {len(added)} tokens" if isinstance(added, list) else f"is {type(added).__name__}"
        raise FormatError(f"{where}: added_tokens {got}, wanted a list of at most {ADDED_CAP}")
    special: dict[int, bool] = {}
    for token in added:
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise FormatError(f"{where}: an added token has no id or no content")
        id_, text = token["id"], token["content"]
        if texts.setdefault(id_, text) != text or id_ in special:
            raise FormatError(f"{where}: added token {quoted(text)} has the id {id_} of {quoted(texts[id_])}")
        if SPACE in text and token.get("normalized") is False and not token.get("special", False):
            continue  # never found in a text, whose spaces are spaces: a piece like others
        special[id_] = bool(token.get("special", False))
    _check_texts(texts, where)
    return Tokens(texts, special, merges)


def _ids(vocab: Mapping[str, Any], where: str) -> dict[int, str]:
    """{id: text}; FormatError for ids that are none, or that two texts have."""
    ids = {id_: text for text, id_ in vocab.items() if type(id_) is int}
    if len(ids) != len(vocab):
        raise FormatError(
            f"{where}: {len(vocab) - len(ids)} of its {len(vocab)} tokens have an id twice, or one that is none"
        )
    return ids


def _check_texts(texts: Mapping[int, str], where: str) -> None:
    if not texts or min(texts) < 0 or max(texts) >= COUNT_CAP:
        raise FormatError(f"{where}: ids of its {len(texts)} tokens are not all between 0 and {COUNT_CAP}")
    if len(set(texts.values())) != len(texts) or not all(texts.values()):
        raise FormatError(f"{where}: two of its tokens have the same text, or one is empty")
    try:
        "".join(texts.values()).encode()
    except UnicodeEncodeError:
        raise FormatError(f"{where}: a token's text is half of a surrogate pair") from None


def _byte_level(content: Mapping[str, Any], model: Mapping[str, Any], tokens: Tokens, where: str) -> Tokenizer:
    """Byte-level BPE, its rules named where they are known ones."""
    neutral = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    ignore_merges = model.get("ignore_merges") is True
    pre = name_of(content.get("normalizer"), content.get("pre_tokenizer"), ignore_merges) if neutral else None
    if pre is not None and RULES[pre].ignore_merges != ignore_merges and not _merges_make_every_token(tokens, where):
        pre = None
    pieces = _pieces(tokens)
    before, after = _template(content, len(pieces), where)
    return Tokenizer(
        BYTE_LEVEL,
        pieces,
        bos_id=before,
        eos_id=after,
        unk_id=None,
        add_bos=before is not None,
        add_eos=after is not None,
        add_space_prefix=False,
        merges=tuple(f"{left} {right}" for left, right in tokens.merges),
        pre=pre,
    )


def _pieces(tokens: Tokens) -> tuple[Piece, ...]:
    """By id; an id that no token has becomes the padding that llama.cpp's converter puts there."""
    type_of = {True: CONTROL, False: USER_DEFINED, None: NORMAL}
    return tuple(
        (tokens.texts[i], 0.0, type_of[tokens.added.get(i)]) if i in tokens.texts else (f"[PAD{i}]", PAD_SCORE, UNUSED)
        for i in range(max(tokens.texts) + 1)
    )


def _merges_make_every_token(tokens: Tokens, where: str) -> bool:
    """Whether it makes no difference that a word which is a token becomes that token at once."""
    from tokenizers.models import BPE

    vocab = {text: id_ for id_, text in tokens.texts.items() if id_ not in tokens.added}
    try:
        model = BPE(vocab=vocab, merges=tokens.merges)
    except Exception as error:  # the library has no narrower class
        raise ModelError(f"{where}: {quoted(str(error))}") from error
    return all(len(model.tokenize(text)) == 1 for text in vocab)


def _template(content: Mapping[str, Any], n_tokens: int, where: str) -> tuple[int | None, int | None]:
    """The ids that the post-processor puts before and after a text; ModelError where it puts more than one."""
    try:
        before, after = _around(content)
    except (KeyError, TypeError, IndexError):
        raise FormatError(f"{where}: its post_processor names tokens that it does not define") from None
    if len(before) > 1 or len(after) > 1:
        raise ModelError(
            f"{where}: puts {len(before)} tokens before a text and {len(after)} after it, smelt keeps one each"
        )
    bad = [id_ for id_ in before + after if type(id_) is not int or not 0 <= id_ < n_tokens]
    if bad:
        raise FormatError(f"{where}: its post_processor adds the id {quoted(bad[0])}, wanted a number below {n_tokens}")
    return next(iter(before), None), next(iter(after), None)


def _around(content: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """The ids before and after a text, whatever they are."""
    before: list[int] = []
    after: list[int] = []
    for step in _steps(content.get("post_processor"), "processors"):
        if step.get("type") == "RobertaProcessing":
            before, after = [step["cls"][1]], [step["sep"][1]]
        if step.get("type") != "TemplateProcessing":
            continue
        found: list[int] = []
        for part in step.get("single") or []:
            if "Sequence" in part:
                before, found = found, []
            else:
                found += step["special_tokens"][part["SpecialToken"]["id"]]["ids"]
        after = found
    return before, after


def _steps(node: Any, children: str) -> list[Mapping[str, Any]]:
    """A node's steps, sequences unfolded; what is no object is left out."""
    if not isinstance(node, Mapping):
        return []
    if node.get("type") != "Sequence":
        return [node]
    parts = node.get(children)
    return [step for part in (parts if isinstance(parts, list) else []) for step in _steps(part, children)]


def _sentencepiece(
    content: Mapping[str, Any], model: Mapping[str, Any], tokens: Tokens, where: str
) -> Tokenizer | None:
    """A vocabulary whose merges are exactly what SentencePiece would try."""
    texts = tokens.texts
    if sorted(texts) != list(range(len(texts))):
        raise FormatError(f"{where}: the ids of its {len(texts)} tokens are not 0 to {len(texts) - 1}")
    prefix = _space_prefix(content)
    unknown = model.get("unk_token")
    if prefix is None or unknown not in texts.values():
        return None
    rank: dict[str, int] = {}
    for left, right in tokens.merges:
        rank.setdefault(left + right, len(rank))
    pieces = tuple(_scored(i, texts[i], tokens.added.get(i), texts[i] == unknown, rank) for i in range(len(texts)))
    cut_out = {text for text, _, type_ in pieces if type_ == USER_DEFINED}
    live = [merge for merge in tokens.merges if cut_out.isdisjoint((*merge, merge[0] + merge[1]))]
    if sorted(merges_of(pieces)) != sorted(live):
        return None
    unk_id = next(i for i, text in texts.items() if text == unknown)
    return Tokenizer(SENTENCEPIECE, pieces, None, None, unk_id, add_bos=False, add_space_prefix=prefix)


def _scored(index: int, text: str, special: bool | None, is_unknown: bool, rank: Mapping[str, int]) -> Piece:
    """A token as SentencePiece would have it; merged pieces score by rank, characters come after them."""
    if is_unknown:
        return text, 0.0, UNKNOWN
    if special is not None:
        return text, ADDED_SCORE, CONTROL if special else USER_DEFINED
    if byte_of(text) is not None:
        return text, 0.0, BYTE
    return text, -float(rank.get(text, len(rank) + index)), NORMAL


def _pairs(merges: Any) -> list[tuple[str, str]] | None:
    """Merges in either spelling, "a b" or ["a", "b"]; None if one is neither."""
    if not isinstance(merges, list) or not all(isinstance(merge, (str, list)) for merge in merges):
        return None
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    ok = all(
        len(pair) == 2 and all(isinstance(part, str) and part and " " not in part for part in pair) for pair in pairs
    )
    return [(pair[0], pair[1]) for pair in pairs] if ok else None


def _space_prefix(content: Mapping[str, Any]) -> bool | None:
    """Whether a space is put before the text; None where spaces are not handled SentencePiece's way."""
    normalizer, pre = content.get("normalizer"), content.get("pre_tokenizer")
    if isinstance(pre, dict) and pre.get("type") == "Metaspace" and normalizer is None:
        return pre.get("replacement") == SPACE and pre.get("prepend_scheme", "always") != "never"
    steps = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    replace_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre is not None or steps[-1:] != [replace_space]:
        return None
    if steps[:-1] == [{"type": "Prepend", "prepend": SPACE}]:
        return True
    return None if steps[:-1] else False
