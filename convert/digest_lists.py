"""Lists of digests as `md5sum` and `sha256sum` print them: checklist.chk, tokenizer_checklist.chk, SHA256SUMS, MD5SUMS.

    <hex digest> <space> <space or *> <file name, relative to the list>

32 hex digits are MD5, 64 are SHA-256. Names lead into the list's own folder only. Source: GNU coreutils, md5sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import FormatError, InputError, quoted

LIST = re.compile(r".*\.chk|(md5|sha256)sums?(\.txt)?|.*\.(md5|sha256)", re.IGNORECASE)
LINE = re.compile(r"([0-9A-Fa-f]{32}|[0-9A-Fa-f]{64}) [ *](.+)")
ALGORITHM = {32: "md5", 64: "sha256"}
CAP = 16 << 20  # bytes


@dataclass(frozen=True)
class Statement:
    """`source` says that the file at `path` has this digest."""

    path: Path
    algorithm: str
    digest: str
    source: str


def is_list(path: Path) -> bool:
    """True for a file that bears the name of a list of digests."""
    return LIST.fullmatch(path.name) is not None


def read_list(path: Path) -> list[Statement]:
    """What a list states. FormatError for a line that is none, or names a file elsewhere; InputError if unreadable."""
    try:
        if path.stat().st_size > CAP:
            raise FormatError(f"{path}: {path.stat().st_size} bytes are no list of digests")
        text = path.read_bytes().decode()
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is not UTF-8, so it is no list of digests") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.rstrip())
        if match is None:
            raise FormatError(f"{path}: line {number} is {quoted(line)}, wanted a digest, two spaces and a file name")
        name = PurePosixPath(match[2].removeprefix("./"))
        if name.is_absolute() or ".." in name.parts or "\0" in match[2]:
            raise FormatError(f"{path}: line {number} names {quoted(match[2])}, which lies outside the list's folder")
        digest = match[1].lower()
        found.append(Statement(path.parent / name, ALGORITHM[len(digest)], digest, path.name))
    return found
