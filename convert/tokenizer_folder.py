"""The tokenizer of a Hugging Face folder -> Tokenizer.

    tokenizer.model beside the weights   the vocabulary; tokens that JSON adds beyond it are appended
    else tokenizer.json                  if it is SentencePiece's BPE in other words: byte fallback, every split a merge
    tokenizer_config.json                which pieces are BOS, EOS, UNK, PAD; add_bos_token, add_eos_token; chat_template
    config.json                          the ids, where the file above names no piece

Source: transformers (the files and their keys), tokenizers (tokenizer.json).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Piece, byte_of
from .tokenizer import MODEL_FILE, SENTENCEPIECE, Tokenizer, open_sentencepiece
from .tokenizer_json import SPACE, merges_of

ADDED_SCORE = -1000.0  # llama.cpp's converter gives it to tokens that are in no SentencePiece file
JSON_CAP = 256 << 20  # bytes


def read_hugging_face(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The folder's vocabulary, special ids and template; None where it has none that is SentencePiece's BPE.

    FormatError for malformed files; ModelError for a SentencePiece model that smelt does not keep, or ids that no piece has.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    if (folder / MODEL_FILE).is_file():
        tokenizer = open_sentencepiece(folder / MODEL_FILE)
        added = _added_tokens(folder, settings)
        tokenizer = replace(tokenizer, pieces=_with_added(tokenizer.pieces, added, folder))
    else:
        found = _from_tokenizer_json(_read_json(folder / "tokenizer.json"), folder / "tokenizer.json")
        if found is None:
            return None
        tokenizer = found
    tokenizer = _with_special_ids(tokenizer, settings, config, folder)
    return replace(
        tokenizer,
        add_bos=_flag(settings, "add_bos_token", tokenizer.bos_id is not None, folder),
        add_eos=_flag(settings, "add_eos_token", False, folder),
        chat_template=_chat_template(folder, settings),
    )


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > JSON_CAP:
            raise FormatError(
                f"{path}: {path.stat().st_size} bytes, at most {JSON_CAP} are read: is it the right file?"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is not there."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds {type(content).__name__}, wanted an object")
    return content


def _added_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """{id: (text, special)} from added_tokens.json and tokenizer_config.json, the latter having the last word."""
    where = folder / "tokenizer_config.json"
    added: dict[int, tuple[str, bool]] = {}
    for text, id_ in _read_json(folder / "added_tokens.json").items():
        if type(id_) is not int or id_ < 0:
            raise FormatError(f"{folder / 'added_tokens.json'}: {quoted(text)} has id {quoted(id_)}")
        added[id_] = (text, False)
    decoder = settings.get("added_tokens_decoder", {})
    if not isinstance(decoder, dict):
        raise FormatError(f"{where}: added_tokens_decoder is no object")
    for key, token in decoder.items():
        if not (key.isascii() and key.isdigit() and isinstance(token, dict) and isinstance(token.get("content"), str)):
            raise FormatError(f"{where}: added_tokens_decoder: {quoted(key)} is no id of a token with content")
        added[int(key)] = (token["content"], bool(token.get("special", False)))
    return added


def _with_added(pieces: tuple[Piece, ...], added: Mapping[int, tuple[str, bool]], folder: Path) -> tuple[Piece, ...]:
    """The pieces with those that the JSON files rename or append; ModelError where ids leave a hole."""
    extended = list(pieces)
    for id_, (text, special) in sorted(added.items()):
        if not text:
            raise FormatError(f"{folder}: added token {id_} is empty")
        piece = (text, ADDED_SCORE, CONTROL if special else USER_DEFINED)
        if id_ > len(extended):
            raise ModelError(
                f"{folder}: added token {quoted(text)} has id {id_}, and there is no token {len(extended)}"
            )
        if id_ == len(extended):
            extended.append(piece)
        elif extended[id_][0] != text:
            extended[id_] = piece
    return tuple(extended)


def _with_special_ids(
    tokenizer: Tokenizer, settings: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> Tokenizer:
    """BOS, EOS, UNK and PAD: the piece that the settings name, else the id that config.json gives, else as it was."""
    by_text = {text: i for i, (text, _, _) in enumerate(tokenizer.pieces)}
    ids: dict[str, int | None] = {}
    for role in ("bos", "eos", "unk", "pad"):
        ids[role] = getattr(tokenizer, f"{role}_id")
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        id_ = config.get(f"{role}_token_id")
        id_ = id_[0] if isinstance(id_, list) and id_ else id_
        if isinstance(text, str):
            if text not in by_text:
                raise ModelError(
                    f"{folder / 'tokenizer_config.json'}: {role}_token is {quoted(text)}, which no piece is"
                )
            ids[role] = by_text[text]
        elif type(id_) is int and 0 <= id_ < len(tokenizer.pieces) and role != "unk":
            ids[role] = id_
    return replace(tokenizer, bos_id=ids["bos"], eos_id=ids["eos"], unk_id=ids["unk"], pad_id=ids["pad"])


def _flag(settings: Mapping[str, Any], key: str, absent: bool, folder: Path) -> bool:
    value = settings.get(key)
    if value is None:
        return absent
    if not isinstance(value, bool):
        raise FormatError(f"{folder / 'tokenizer_config.json'}: {key} is {quoted(value)}, wanted true or false")
    return value


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template's text, never rendered: its own file, a string, or the one named "default" of several."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return _read(path).decode()
        except UnicodeDecodeError:
            raise FormatError(f"{path}: is not UTF-8") from None
    template = settings.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = entries[-1].get("template") if entries else None
    if template is not None and not isinstance(template, str):
        raise FormatError(
            f"{folder / 'tokenizer_config.json'}: chat_template is {type(template).__name__}, wanted text"
        )
    return template


def _from_tokenizer_json(content: Mapping[str, Any], path: Path) -> Tokenizer | None:
    """A vocabulary whose merges are exactly what SentencePiece would try, its scores by the order of the merges."""
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE" or model.get("byte_fallback") is not True:
        return None
    vocab, merges = model.get("vocab"), _pairs(model.get("merges"))
    if not isinstance(vocab, dict) or merges is None:
        raise FormatError(f"{path}: its model has no vocabulary, or merges that are no pairs")
    texts: dict[int, str] = {id_: text for text, id_ in vocab.items() if type(id_) is int}
    special: dict[int, bool] = {}
    added = content.get("added_tokens") or []
    if not isinstance(added, list):
        raise FormatError(f"{path}: added_tokens is {type(added).__name__}, wanted a list")
    for token in added:
        if not isinstance(token, dict) or type(token.get("id")) is not int or not isinstance(token.get("content"), str):
            raise FormatError(f"{path}: an added token has no id or no content")
        texts[token["id"]] = token["content"]
        special[token["id"]] = bool(token.get("special", False))
    if sorted(texts) != list(range(len(texts))) or not all(texts.values()):
        raise FormatError(f"{path}: the ids of its {len(texts)} tokens are not 0 to {len(texts) - 1}, or one is empty")
    prefix = _space_prefix(content)
    unknown = model.get("unk_token")
    if prefix is None or unknown not in texts.values():
        return None
    rank: dict[str, int] = {}
    for left, right in merges:
        rank.setdefault(left + right, len(rank))
    pieces = tuple(_scored(i, texts[i], special.get(i), texts[i] == unknown, rank) for i in range(len(texts)))
    if sorted(merges_of(pieces)) != sorted(merges):
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
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges if merge]
    ok = all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs)
    return [(pair[0], pair[1]) for pair in pairs] if ok and len(pairs) == len(merges) else None


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
