"""Are these the files that they should be? What each says of itself, and what lists say of it.

    content     an LFS pointer, a web page, an empty or a cut file is bad, whatever its name
    lists       checklist.chk, SHA256SUMS, ... in its folder or above: md5, sha256
    published   digests that ship with smelt; where one file of a model is recognised, all its others must match too
    manifest    smelt.json, or <file>.smelt.json: sizes, headers, and a digest of every tensor's values

    ok: a digest says so        bad: a digest, or the content, says otherwise        unknown: nothing says anything

A file that no list names is read no further than its headers, but for torch's zips (.pth, .pt, .bin): their own CRC-32s are
checked. A list may have been made of a file that was cut already, so a zip's directory is read whatever the list says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import InputError
from ..formats.checkpoint import SourceFile
from ..formats.gguf_read import read_file as read_gguf
from ..formats.pth import check_crc
from ..formats.safetensors_read import read_file as read_safetensors
from ..formats.sniff import ADVICE, HEAD, sniff_head
from ..formats.stored_zip import read_members
from .digest_lists import Statement, is_list, read_list
from .manifest_check import ManifestCheck, check_manifest, is_manifest
from .progress import Progress, silent
from .published import belonging, published_as, published_names

Status = Literal["ok", "bad", "unknown"]
CHUNK = 16 << 20  # bytes hashed at once
WEIGHTS = (".pth", ".pt", ".bin", ".safetensors", ".gguf")
HIDDEN = "."  # .git, .cache: not the model's


@dataclass(frozen=True)
class FileCheck:
    """One file's answer; `file` is relative to what was asked about."""

    file: str
    status: Status
    reason: str


@dataclass(frozen=True)
class VerifyResult:
    """Every file's answer, by name."""

    path: str
    files: tuple[FileCheck, ...]

    def count(self, status: Status) -> int:
        """How many files have this status."""
        return sum(check.status == status for check in self.files)

    @property
    def verdict(self) -> Status:
        """bad if any file is, else unknown if any is, else ok."""
        return next((status for status in ("bad", "unknown") if self.count(status)), "ok")

    def document(self) -> dict[str, Any]:
        """The JSON of `smelt verify`."""
        return {
            "path": self.path,
            "verdict": self.verdict,
            **{status: self.count(status) for status in ("ok", "bad", "unknown")},
            "files": [{"file": c.file, "status": c.status, "reason": c.reason} for c in self.files],
        }


@dataclass
class _File:
    """What is known of one file while it is looked at."""

    path: Path
    statements: list[Statement] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    cut: str | None = None
    manifest: ManifestCheck | None = None


def verify(path: Path, *, threads: int = 2, progress: Progress | None = None) -> VerifyResult:
    """Look at a file, or at every file under a folder. InputError where there is none."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    asked, path = str(path), path.absolute()
    base = path if path.is_dir() else path.parent
    found = _walk(path)
    lists = [file for file in (_walk(base) if path.is_dir() else _beside(path)) if is_list(file)]
    lists += [file for file in _beside(base) if is_list(file)]  # LLaMA 1's tokenizer and SHA256SUMS lie above
    checks: list[FileCheck] = []
    statements: list[Statement] = []
    for file in lists:
        try:
            statements += read_list(file)
        except InputError as error:
            checks.append(FileCheck(_shown(file, base), "bad", _reason(error, file)))
    files = {file: _File(file) for file in found if not is_list(file) and not is_manifest(file)}
    for statement in statements:
        if statement.path in files:
            files[statement.path].statements.append(statement)
        elif path.is_dir() and base in statement.path.parents and not statement.path.exists():
            checks.append(FileCheck(_shown(statement.path, base), "bad", f"is missing: {statement.source} lists it"))
    _examine(files.values(), threads, progress or silent)
    checks += _manifests(
        files, [file for file in (*found, *_beside(path)) if is_manifest(file)], base, progress or silent
    )
    checks += [FileCheck(_shown(file.path, base), *_judge(file, files)) for file in files.values()]
    return VerifyResult(asked, tuple(sorted(set(checks), key=lambda check: check.file)))


def _walk(path: Path) -> list[Path]:
    """The file itself, or every regular file under a folder that is not hidden; no link to a folder is followed."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(HIDDEN) or (entry.is_dir() and entry.is_symlink()):
            continue
        found += _walk(entry) if entry.is_dir() else [entry]
    return found


def _beside(path: Path) -> list[Path]:
    """The files of the folder that `path` lies in."""
    try:
        return [entry for entry in sorted(path.parent.iterdir()) if entry.is_file()]
    except OSError:  # a folder above that may not be listed says nothing
        return []


def _shown(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if base in path.parents else str(path)


def _reason(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _examine(files: Iterable[_File], threads: int, progress: Progress) -> None:
    """Look into every file, and hash those that something is known of."""
    waiting = list(files)
    total = sum(file.path.stat().st_size for file in waiting if file.path.is_file())
    done = 0

    def tick(nbytes: int, name: str) -> None:
        nonlocal done
        done += nbytes
        progress(min(done, total), total, name)

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="verify") as pool:
        for file in waiting:
            try:
                _look(file, pool, tick)
            except InputError as error:
                file.problem = _reason(error, file.path)


def _look(file: _File, pool: ThreadPoolExecutor, tick: Any) -> None:
    source = SourceFile(file.path)
    try:
        head = source.read(0, min(HEAD, source.nbytes))
        kind = sniff_head(head)
        if kind in ("lfs-pointer", "html") or (kind == "empty" and file.path.suffix in WEIGHTS):
            file.problem = ADVICE[kind] + _pointer_size(head)
            return
        if kind == "gguf":
            read_gguf(file.path)
        elif kind == "safetensors":
            read_safetensors(file.path)
        elif file.path.suffix in WEIGHTS and not any(head):
            file.problem = "begins with zeros: the download never finished, fetch the file again"
            return
        elif file.path.suffix in (".safetensors", ".gguf"):
            file.problem = f"{ADVICE[kind]}, not a {file.path.suffix[1:]} file"
            return
        wanted = {statement.algorithm for statement in file.statements}
        if file.path.name in published_names():
            wanted |= {"md5", "sha256"}
        if kind == "pth" and file.statements:
            file.cut = _cut(source)
        elif kind == "pth":
            check_crc(file.path)
        if wanted:
            file.digests = _hash(source, sorted(wanted), pool, tick)
    finally:
        source.close()


def _cut(source: SourceFile) -> str | None:
    """What is wrong with the directory at the end of torch's zip; None where it is sound."""
    try:
        read_members(source)
    except InputError as error:
        return _reason(error, source.path)
    return None


def _pointer_size(head: bytes) -> str:
    """What an LFS pointer says of the size of the file that it stands for."""
    lines = dict(line.split(" ", 1) for line in head.decode("ascii", "replace").splitlines() if " " in line)
    size = lines.get("size", "")
    return f" (the file has {size} bytes)" if size.isascii() and size.isdigit() else ""


def _hash(source: SourceFile, algorithms: Sequence[str], pool: ThreadPoolExecutor, tick: Any) -> dict[str, str]:
    """Read once; every algorithm hashes the chunk on a thread of its own while the next is read."""
    hashes = [hashlib.new(algorithm, usedforsecurity=False) for algorithm in algorithms]
    buffers = [np.empty(min(CHUNK, max(1, source.nbytes)), np.uint8) for _ in range(2)]
    running: list[Any] = []
    for number, offset in enumerate(range(0, source.nbytes, CHUNK)):
        chunk = buffers[number % 2][: min(CHUNK, source.nbytes - offset)]
        source.read_into(chunk, offset)
        for job in running:
            job.result()
        running = [pool.submit(one.update, chunk.data) for one in hashes]
        tick(len(chunk), source.path.name)
    for job in running:
        job.result()
    return {algorithm: one.hexdigest() for algorithm, one in zip(algorithms, hashes, strict=True)}


def _judge(file: _File, files: Mapping[Path, _File]) -> tuple[Status, str]:
    """The answer for one file, once all are looked at."""
    if file.problem is not None:
        return "bad", file.problem
    for statement in file.statements:
        if file.digests[statement.algorithm] != statement.digest:
            got = file.digests[statement.algorithm]
            return "bad", f"{statement.algorithm} is {got}, {statement.source} says {statement.digest}"
    if file.cut is not None:
        return "bad", file.cut
    if file.manifest is not None and file.manifest.problem is not None:
        return "bad", file.manifest.problem
    said = [f"{statement.algorithm} as in {statement.source}" for statement in file.statements]
    if file.manifest is not None:
        said.append(file.manifest.said)
    name = file.path.name
    original = published_as(name, file.digests)
    if original is not None:
        said.append(f"as published: {original.model} ({original.source})")
    if said:
        return "ok", "; ".join(said)
    beside = {f.path.name: f.digests for f in files.values() if f.path.parent == file.path.parent and f.digests}
    owner = belonging(name, beside)
    if owner is not None:
        algorithm = next(algorithm for algorithm in ("sha256", "md5") if algorithm in owner.files[name])
        return "bad", (
            f"{algorithm} is {file.digests[algorithm]}, but {owner.files[name][algorithm]} was published for {owner.model}, "
            f"to which other files here belong ({owner.source})"
        )
    return "unknown", "no digest is known for it"


def _manifests(
    files: Mapping[Path, _File], manifests: Sequence[Path], base: Path, progress: Progress
) -> list[FileCheck]:
    """Hold files against smelt's own manifests; -> the answers for manifests that are broken, or name what is not there."""
    checks = []
    for path in dict.fromkeys(manifests):
        here = path.parent
        try:
            found = check_manifest(path, progress)
        except InputError as error:
            checks.append(FileCheck(_shown(path, base), "bad", _reason(error, path)))
            continue
        for name, check in found.items():
            if here / name in files:
                files[here / name].manifest = check
            elif check.problem is not None:
                checks.append(FileCheck(_shown(here / name, base), "bad", f"{check.problem}: {path.name} lists it"))
    return checks
