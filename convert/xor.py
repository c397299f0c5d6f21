"""Files that become a model when they are XORed with the base's files of the same names, as Open Assistant published theirs.

    target/<name> = payload/<name> XOR base/<name>       the base's file is cut, or goes on with zeros, to the payload's length
    payload/<name> without a base's file of that name    copied as it is (added_tokens.json)

A payload may be gzipped. Every byte depends on every byte of the base, so the base must be the very files that the payload
was made from: what does not begin like weights afterwards is refused before anything has its name. Source:
OpenAssistant, oasst-sft-6-llama-30b-xor, xor_codec.py (behaviour).
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..errors import FormatError, InputError
from ..formats.checkpoint import FileLayout, SourceFile
from ..formats.sniff import sniff, sniff_head
from ..formats.transaction import Transaction
from .progress import Progress, silent
from .run import RunResult

CHUNK = 8 << 20  # bytes
GZIP = b"\x1f\x8b"
WEIGHTS = {".bin": "pth", ".pth": "pth", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class _Payload:
    """One file: its name, the base's file or None, its length once it is unpacked."""

    path: Path
    base: Path | None
    is_gzip: bool
    nbytes: int


def is_xor(folder: Path) -> bool:
    """True for a folder whose weights bear the names of weights and are none."""
    named = [path for path in folder.iterdir() if path.is_file() and path.suffix in WEIGHTS] if folder.is_dir() else []
    return bool(named) and all(sniff(path) == "unknown" for path in named)


def merge_xor(
    base: Path, payload: Path, target: Path, *, force: bool = False, progress: Progress = silent
) -> RunResult:
    """Write the folder `target`. InputError where the base is not the one that the payload was made from."""
    started = time.monotonic()
    if not base.is_dir():
        raise InputError(f"{base}: no such folder: XORed files need the base's own files, as a Hugging Face folder")
    files = [_payload(path, base) for path in sorted(payload.iterdir()) if path.is_file()]
    layouts = {file.path.name: FileLayout(file.nbytes) for file in files}
    inputs = [path for file in files for path in (file.path, file.base) if path is not None]
    with Transaction(target, layouts, folder=True, force=force, sources=inputs) as transaction, ExitStack() as stack:
        total, done = sum(file.nbytes for file in files), 0
        for file in files:
            source = None if file.base is None else SourceFile(file.base)
            if source is not None:
                stack.callback(source.close)
            offset = 0
            for chunk in _chunks(file):
                if source is not None:
                    _xor(chunk, source, offset)
                if offset == 0:
                    _check(file, chunk[:512].tobytes())
                transaction.write(file.path.name, offset, chunk)
                offset += len(chunk)
                done += len(chunk)
                progress(done, total, file.path.name)
        transaction.add("smelt.json", _manifest(files, base))
        transaction.commit()
    copied = [file.path.name for file in files if file.base is None]
    notes = (f"not in the base, so copied as they are: {', '.join(copied)}",) if copied else ()
    names = (*layouts, "smelt.json")
    seconds = round(time.monotonic() - started, 3)
    return RunResult(
        target, tuple(target / name for name in names), total, len(files), seconds, {"xor": len(files)}, notes
    )


def _payload(path: Path, base: Path) -> _Payload:
    with path.open("rb") as file:
        is_gzip = file.read(2) == GZIP
    nbytes = path.stat().st_size
    if is_gzip:
        nbytes = sum(len(chunk) for chunk in _unpacked(path))
    other = base / path.name
    return _Payload(path, other if other.is_file() else None, is_gzip, nbytes)


def _chunks(file: _Payload) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    """The payload's bytes in order, in memory of their own."""
    if file.is_gzip:
        yield from _unpacked(file.path)
        return
    source = SourceFile(file.path)
    try:
        for offset in range(0, file.nbytes, CHUNK):
            chunk = np.empty(min(CHUNK, file.nbytes - offset), np.uint8)
            source.read_into(chunk, offset)
            yield chunk
    finally:
        source.close()


def _unpacked(path: Path) -> Iterator[np.ndarray[tuple[int], np.dtype[np.uint8]]]:
    try:
        with gzip.open(path) as file:
            while content := file.read(CHUNK):
                yield np.frombuffer(content, np.uint8).copy()
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: is gzipped, and cannot be unpacked: {error}") from None


def _xor(chunk: np.ndarray[tuple[int], np.dtype[np.uint8]], base: SourceFile, offset: int) -> None:
    """XOR the base's bytes from `offset` on into the chunk, as far as the base has any."""
    length = min(len(chunk), max(0, base.nbytes - offset))
    if length:
        other = np.empty(length, np.uint8)
        base.read_into(other, offset)
        chunk[:length] ^= other


def _check(file: _Payload, head: bytes) -> None:
    wanted = WEIGHTS.get(file.path.suffix)
    if wanted is not None and sniff_head(head) != wanted:
        raise InputError(
            f"{file.path}: with {file.base or 'no base'} it gives no {file.path.suffix[1:]} file: the base must be the very "
            "files that these were made from (byte for byte: the same converter, the same shards)"
        )


def _manifest(files: list[_Payload], base: Path) -> bytes:
    document = {
        "smelt": version("smelt"),
        "recipe": "merge --delta (XOR)",
        "sources": [
            {"file": path.name, "bytes": path.stat().st_size}
            for file in files
            for path in (file.path, file.base)
            if path is not None
        ],
        "files": [{"file": file.path.name, "bytes": file.nbytes} for file in files],
        "notes": [f"base: {base.name}"],
    }
    return (json.dumps(document, indent=1) + "\n").encode()
