"""smelt's own manifest, held against the files that it speaks of: sizes, headers, and every tensor's values.

Tensors are read as a model of their format, so what is compared are canonical values: the same digests stand in the
manifests of one model in any format. What a manifest does not say is not checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, quoted
from .containers import OWN
from .digests import tensor_digest
from .headers import header_sha256, stored_tensors
from .metaseq_parts import open_parts
from .model import Model
from .open import open_model
from .options import OpenOptions
from .progress import Progress

MANIFEST = "smelt.json"
SUFFIX = ".smelt.json"
CAP = 64 << 20  # bytes


@dataclass(frozen=True)
class ManifestCheck:
    """What a manifest says of one file: `problem` where the file is not as it says, `said` where it is."""

    said: str
    problem: str | None = None


def is_manifest(path: Path) -> bool:
    """True for smelt.json and <file>.smelt.json."""
    return path.name == MANIFEST or path.name.endswith(SUFFIX)


def check_manifest(path: Path, progress: Progress) -> dict[str, ManifestCheck]:
    """{file name: what is to be said of it}. InputError where the manifest is none, or the model cannot be opened."""
    document = _read(path)
    entries = [entry for entry in document.get("files", []) if isinstance(entry, dict)]
    found: dict[str, ManifestCheck] = {}
    for entry in entries:
        name = entry.get("file")
        if not isinstance(name, str) or Path(name).name != name:
            raise FormatError(f"{path}: names the file {quoted(name)}, wanted a plain file name")
        found[name] = ManifestCheck(f"as in {path.name}", _problem(path.parent / name, entry))
    digests = document.get("digests")
    if isinstance(digests, dict) and digests and not any(check.problem for check in found.values()):
        target = path.parent if path.name == MANIFEST else path.with_name(path.name.removesuffix(SUFFIX))
        model = open_model(target, OpenOptions(skip_tokenizer=True))
        found |= _check_tensors(path.parent, list(found), model, digests, progress)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > CAP:
            raise FormatError(f"{path}: {path.stat().st_size} bytes are no manifest of smelt")
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(document, dict) or not isinstance(document.get("files"), list):
        raise FormatError(f"{path}: is no manifest of smelt: it lists no files")
    return document


def _problem(file: Path, entry: Mapping[str, Any]) -> str | None:
    """What of a file is not as its manifest says: that it is there, its size, its header."""
    if not file.is_file():
        return "is missing"
    nbytes = file.stat().st_size
    if nbytes != entry.get("bytes"):
        return f"has {nbytes} bytes, {quoted(entry.get('bytes'))} were written: it was cut or changed"
    wanted = entry.get("header_sha256")
    try:
        got = header_sha256(file)
    except InputError as error:
        return str(error).removeprefix(f"{file}: ")
    return f"its header has sha256 {got}, {quoted(wanted)} was written" if wanted not in (None, got) else None


def _tensor_names(file: Path, source: str) -> Iterable[str]:
    """The names of the tensors in one file of a model that is stored as `source`; none for a third party's container."""
    if source not in OWN:
        return ()
    if source != "metaseq":
        return stored_tensors(file)
    return open_parts(file).tensors if file.suffix == ".pt" else ()


def _check_tensors(
    folder: Path, names: list[str], model: Model, digests: Mapping[str, Any], progress: Progress
) -> dict[str, ManifestCheck]:
    """The files that hold a tensor whose values are not the written ones, or that lack one."""
    bad: list[str] = []
    for number, (name, tensor) in enumerate(model.tensors.items(), 1):
        if name in digests and tensor_digest(tensor) != digests[name]:
            bad.append(name)
        progress(number, len(model.tensors), name)
    stored = {model.stored_names.get(name, name): name for name in bad}
    found = {}
    for file in names:
        hurt = [stored.pop(name) for name in list(_tensor_names(folder / file, model.source)) if name in stored]
        if hurt:
            more = f" and {len(hurt) - 4} more" if len(hurt) > 4 else ""
            found[file] = ManifestCheck(
                "", f"the values of {', '.join(hurt[:4])}{more} are not those that were written"
            )
    if stored and names:  # in a container that does not tell which file holds what
        found[names[0]] = ManifestCheck("", f"the values of {min(stored.values())} are not those that were written")
    lacking = sorted(set(digests) - set(model.tensors))
    if lacking and names:
        found[names[0]] = ManifestCheck("", f"{len(lacking)} tensors are not there, first {quoted(lacking[0])}")
    return found
