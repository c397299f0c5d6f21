"""A tokenizer file by itself, whatever kind it is: what --tokenizer names, and what lies beside Meta's weights.

protobuf that begins with a piece   SentencePiece            base64 and a rank a line   Llama 3's ranks
a JSON object with a model          tokenizer.json           {text: id} and merges.txt  GPT-2's and OPT's pair
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import FormatError, InputError, ModelError, UsageError
from ..formats.tiktoken import is_tiktoken
from .tokenizer import BYTE_LEVEL, MODEL_FILE, TOKENIZER_JSON, Tokenizer, read_sentencepiece
from .tokenizer_folder import JSON_CAP, read_files
from .tokenizer_tiktoken import read_tiktoken


def open_tokenizer(path: Path, llama3_1: bool = False) -> Tokenizer:
    """The vocabulary in the file at `path`; `llama3_1` chooses the names of the special tokens that ranks leave out.

    Beside a tokenizer.json or vocab.json lie its settings. InputError where it cannot be read; FormatError or ModelError,
    naming the path, for what is in it.
    """
    try:
        if path.stat().st_size > JSON_CAP:
            raise FormatError(
                f"{path}: {path.stat().st_size} bytes, at most {JSON_CAP} are read: is it the right file?"
            )
        content = path.read_bytes()
        if content.lstrip()[:1] == b"{":
            return _from_json(path, content)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file: --tokenizer names the model's tokenizer.model or tokenizer.json"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return read_tiktoken(content, llama3_1) if is_tiktoken(content) else read_sentencepiece(content)
    except (FormatError, ModelError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{MODEL_FILE}: ')}") from None


def with_pre(tokenizer: Tokenizer | None, pre: str | None) -> Tokenizer | None:
    """The tokenizer with the pre-tokenizer's name that a user says; UsageError for a vocabulary that has none."""
    if pre is None or tokenizer is None:
        return tokenizer
    if tokenizer.kind != BYTE_LEVEL:
        raise UsageError(f"--pre {pre}: the vocabulary is {tokenizer.kind}, which cuts no words: leave --pre away")
    return replace(tokenizer, pre=pre)


def _from_json(path: Path, content: bytes) -> Tokenizer:
    """tokenizer.json, or a vocab.json with its merges.txt, and the tokenizer_config.json beside it."""
    files = {}
    merges = path.with_name(path.name.replace("vocab.json", "merges.txt"))
    if merges != path and merges.is_file():
        files = {"vocab.json": content, "merges.txt": merges.read_bytes()}
    else:
        files = {TOKENIZER_JSON: content}
    settings = path.with_name("tokenizer_config.json")
    if settings.is_file():
        files[settings.name] = settings.read_bytes()
    found = read_files(files, {}, path.parent)
    if found is None:
        is_model = b'"model"' in content or "merges.txt" in files
        what = (
            "neither SentencePiece's BPE nor byte-level BPE: smelt keeps these two kinds"
            if is_model
            else "no vocabulary"
        )
        raise (ModelError if is_model else FormatError)(f"{path}: holds {what}")
    return found
