"""The tokenizer of a Hugging Face folder -> Tokenizer.

    tokenizer.model beside the weights   the vocabulary; tokens that JSON adds beyond it are appended
    else tokenizer.json                  SentencePiece's BPE in other words, or byte-level BPE (`tokenizer_json_read`)
    else vocab.json, merges.txt          byte-level BPE, as GPT-2 and OPT have it
    tokenizer_config.json                which pieces are BOS, EOS, UNK, PAD; add_bos_token, add_eos_token; chat_template
    config.json                          the ids, where the files above name no piece

Source: transformers (the files and their keys), tokenizers (tokenizer.json).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.sentencepiece import CONTROL, USER_DEFINED, Piece
from ..formats.tiktoken import is_tiktoken
from .side_files import SIDE_FILES
from .tokenizer import BYTE_LEVEL, MODEL_FILE, SENTENCEPIECE, Tokenizer, read_sentencepiece
from .tokenizer_json_read import ADDED_SCORE, read_tokenizer_json, read_vocab_merges
from .tokenizer_roles import special_roles
from .tokenizer_tiktoken import is_llama3_1, read_tiktoken

JSON_CAP = 64 << 20  # bytes; Gemma 3's tokenizer.json has 33 million
# the rules of a folder without tokenizer.json are its class's
_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}


def read_hugging_face(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """The folder's vocabulary, special ids and template; None where it has none of the two kinds.

    FormatError for malformed files; ModelError for a SentencePiece model that smelt does not keep, or ids that no piece has.
    """
    files = {name: _read(folder / name) for name in SIDE_FILES if (folder / name).is_file()}
    return read_files(files, config, folder)


def read_files(files: Mapping[str, bytes], config: Mapping[str, Any], folder: Path) -> Tokenizer | None:
    """The same of a folder's files by name; `folder` stands in messages."""
    settings = _object(files, "tokenizer_config.json", folder)
    model = files.get(MODEL_FILE)
    found: Tokenizer | None
    if model is not None and not (is_tiktoken(model) and "tokenizer.json" in files):
        found = _from_model_file(files, settings, config, folder)
    elif "tokenizer.json" in files:
        content = _object(files, "tokenizer.json", folder)
        found = read_tokenizer_json(content, str(folder / "tokenizer.json"))
    elif "vocab.json" in files and "merges.txt" in files:
        found = _from_vocab_merges(files, settings, folder)
    else:
        return None
    if found is None:
        return None
    named = _with_special_ids(found, settings, config, folder)
    if found.add_bos and found.bos_id is not None and found.kind == BYTE_LEVEL:
        named = replace(named, bos_id=found.bos_id)  # what tokenizer.json puts in front
    is_sentencepiece = found.kind == SENTENCEPIECE
    return replace(
        named,
        add_bos=_flag(settings, "add_bos_token", is_sentencepiece and named.bos_id is not None, folder)
        or found.add_bos,
        add_eos=_flag(settings, "add_eos_token", False, folder) or found.add_eos,
        chat_template=_chat_template(files, folder, settings),
        files=dict(files),
        special_ids=special_roles(named.pieces),
    )


def agreeing_files(tokenizer: Tokenizer, files: Mapping[str, bytes]) -> Tokenizer:
    """A GGUF file's vocabulary with the files that it carries, if they say what its keys say.

    FormatError where they hold other tokens or merges; where BOS, EOS or the template were set anew, the keys win and the
    files stay behind.
    """
    if not files:
        return tokenizer
    where = Path("smelt.files")
    carried = {**files, **tokenizer.files}
    found = read_files(carried, {}, where)
    if found is None:
        return tokenizer
    for i, (one, other) in enumerate(zip(found.pieces, tokenizer.pieces, strict=False)):
        if (one[0], one[2]) != (other[0], other[2]):
            raise FormatError(f"{where} and tokenizer.ggml.tokens disagree about token {i}: one of them was edited")
    if len(found.pieces) != len(tokenizer.pieces) or found.merges != tokenizer.merges:
        what = "merges" if len(found.pieces) == len(tokenizer.pieces) else "the number of tokens"
        raise FormatError(f"{where} and the keys of tokenizer.ggml disagree about {what}: one of them was edited")
    ids = (found.bos_id, tokenizer.bos_id), (found.eos_id, tokenizer.eos_id)
    changed = any(said is not None and said != key for said, key in ids)
    if changed or found.chat_template != tokenizer.chat_template:
        return tokenizer
    return replace(tokenizer, files=carried)


def _from_model_file(
    files: Mapping[str, bytes], settings: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> Tokenizer:
    """SentencePiece's file, or Llama 3's ranks, whose special tokens are the release's."""
    path = folder / MODEL_FILE
    try:
        if is_tiktoken(files[MODEL_FILE]):
            return read_tiktoken(files[MODEL_FILE], is_llama3_1(config))
        found = read_sentencepiece(files[MODEL_FILE])
    except (FormatError, ModelError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{MODEL_FILE}: ')}") from None
    added = _added_tokens(files, settings, folder)
    return replace(found, add_bos=False, pieces=_with_added(found.pieces, added, folder))


def _from_vocab_merges(files: Mapping[str, bytes], settings: Mapping[str, Any], folder: Path) -> Tokenizer:
    added = _added_tokens(files, settings, folder)
    named = [settings.get(f"{role}_token") for role in ("bos", "eos", "unk", "pad")]
    names = {token.get("content") if isinstance(token, dict) else token for token in named}
    class_ = str(settings.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    pre = None if settings.get("add_prefix_space") is True else _CLASSES.get(class_)
    vocab = _object(files, "vocab.json", folder)
    return read_vocab_merges(vocab, files["merges.txt"], added, names, pre, str(folder))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > JSON_CAP:
            raise FormatError(
                f"{path}: {path.stat().st_size} bytes, at most {JSON_CAP} are read: is it the right file?"
            )
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _object(files: Mapping[str, bytes], name: str, folder: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is not there."""
    path = folder / name
    if name not in files:
        return {}
    try:
        content = json.loads(files[name])
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds {type(content).__name__}, wanted an object")
    return content


def _added_tokens(files: Mapping[str, bytes], settings: Mapping[str, Any], folder: Path) -> dict[int, tuple[str, bool]]:
    """{id: (text, special)} from added_tokens.json and tokenizer_config.json, the latter having the last word."""
    where = folder / "tokenizer_config.json"
    added: dict[int, tuple[str, bool]] = {}
    for text, id_ in _object(files, "added_tokens.json", folder).items():
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


def _chat_template(files: Mapping[str, bytes], folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The template's text, never rendered: its own file, a string, or the one named "default" of several."""
    path = folder / "chat_template.jinja"
    if path.name in files:
        try:
            return files[path.name].decode()
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
