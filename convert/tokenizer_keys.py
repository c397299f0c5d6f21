"""A vocabulary's keys as a GGUF file has them, each checked before it is used: arrays, ids, flags, files.

Source: ggml docs/gguf.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FormatError, ModelError, quoted
from ..formats.gguf import GGUFArray, GGUFValue
from ..formats.gguf_types import SCALARS

TEMPLATE_CAP = 1 << 20  # characters
FILE_CAP = 64 << 20  # bytes; Gemma 3's tokenizer.json has 33 million
FILES = "smelt.files."


def array(metadata: Mapping[str, Any], name: str, element_type: str, length: int | None) -> list[Any]:
    """The elements of `tokenizer.ggml.{name}`; FormatError for another type or length, or none at all."""
    key = f"tokenizer.ggml.{name}"
    found = metadata.get(key)
    if not isinstance(found, GGUFArray) or found.element_type != element_type:
        got = f"an array of {found.element_type}" if isinstance(found, GGUFArray) else quoted(found)
        raise FormatError(f"{key} is {got}, wanted an array of {element_type}")
    if not found or (length is not None and len(found) != length):
        raise FormatError(f"{key} has {len(found)} elements, wanted {'some' if length is None else length}")
    return found.tolist()


def special_id(metadata: Mapping[str, Any], role: str, n_vocab: int) -> int | None:
    """`tokenizer.ggml.{role}_token_id`; None where there is none, FormatError where no token has it."""
    key = f"tokenizer.ggml.{role}_token_id"
    id_ = metadata.get(key)
    if id_ is None:
        return None
    if type(id_) is not int or not 0 <= id_ < n_vocab:
        raise FormatError(f"{key} is {quoted(id_)}, wanted a number below {n_vocab}")
    return id_


def flag(metadata: Mapping[str, Any], name: str, absent: bool) -> bool:
    """A bool; `absent` is what llama.cpp takes where the key is left out."""
    value = metadata.get(f"tokenizer.ggml.{name}", absent)
    if not isinstance(value, bool):
        raise FormatError(f"tokenizer.ggml.{name} is {quoted(value)}, wanted true or false")
    return value


def template(metadata: Mapping[str, Any]) -> str | None:
    """The chat template; FormatError for anything but a text of a sensible length."""
    found = metadata.get("tokenizer.chat_template")
    if found is not None and (not isinstance(found, str) or len(found) > TEMPLATE_CAP):
        raise FormatError(f"tokenizer.chat_template is no text of at most {TEMPLATE_CAP} characters")
    return found


def strings(texts: Sequence[str]) -> GGUFValue:
    """An array of strings as the file will hold it; ModelError for a text that is not Unicode."""
    try:
        raws = [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise ModelError(f"the tokenizer has {quoted(error.object)}, half of a surrogate pair") from None
    raw = b"".join([len(part).to_bytes(8, "little") + part for part in raws])
    starts = np.cumsum([0, *(len(part) + 8 for part in raws)], dtype=np.int64)
    return GGUFValue("[string]", GGUFArray("string", raw, starts))


def numbers(type_: str, values: Sequence[float]) -> GGUFValue:
    """An array of numbers as the file will hold it."""
    return GGUFValue(f"[{type_}]", GGUFArray(type_, np.array(values, SCALARS[type_].format).tobytes()))


def file_keys(files: Mapping[str, bytes]) -> dict[str, GGUFValue]:
    """`smelt.files.{name}`: a string, or an array of u8 where the file is not UTF-8. ModelError for one too large."""
    keys = {}
    for name, content in sorted(files.items()):
        if len(content) > FILE_CAP:
            raise ModelError(f"{name}: {len(content)} bytes, a GGUF file carries at most {FILE_CAP} of it")
        try:
            keys[FILES + name] = GGUFValue("string", content.decode())
        except UnicodeDecodeError:
            keys[FILES + name] = GGUFValue("[u8]", GGUFArray("u8", content))
    return keys


def carried_files(metadata: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, bytes]:
    """{name: content} of those of `names` that the file carries; FormatError where one is neither string nor bytes."""
    files = {}
    for name in names:
        value = metadata.get(FILES + name)
        if isinstance(value, str):
            files[name] = value.encode()
        elif isinstance(value, GGUFArray) and value.element_type == "u8":
            files[name] = value.raw
        elif value is not None:
            raise FormatError(f"{FILES}{name} is {quoted(value)}, wanted a string or an array of u8")
    return files
