"""What a validation reads: named texts, or token ids that were made elsewhere.

a text   UTF-8; the reference's tokenizer makes its ids, and the candidate's must make the same
ids      a JSON list, or a one-dimensional .npy of whole numbers: used as they are, BOS and all
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError, quoted

NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Text:
    """One text of a validation. Of `content` and `ids` exactly one is there."""

    name: str
    content: str | None = None
    ids: tuple[int, ...] | None = None


def read_text(path: Path, name: str) -> Text:
    """A text file. InputError where it cannot be read or is not UTF-8."""
    try:
        return Text(name, _read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}: save it as UTF-8 text") from None


def read_token_ids(path: Path, name: str) -> Text:
    """A file of token ids. FormatError for what is no list of ids from 0 to 2^31 - 1."""
    content = _read(path)
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False) if content.startswith(NPY) else json.loads(content)
    except (ValueError, RecursionError, EOFError) as error:
        raise FormatError(f"{path}: is neither a JSON list nor an .npy file of token ids: {error}") from None
    if isinstance(found, np.ndarray) and found.ndim == 1 and found.dtype.kind in "iu":
        found = found.tolist()
    if not isinstance(found, list):
        raise FormatError(f"{path}: holds {type(found).__name__}, wanted one list of token ids")
    wrong = next((i for i in found if type(i) is not int or not 0 <= i < 1 << 31), None)
    if wrong is not None:
        raise FormatError(f"{path}: {quoted(wrong)} is no token id, wanted 0 to 2147483647")
    return Text(name, None, tuple(found))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
