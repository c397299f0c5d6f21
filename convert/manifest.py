"""What an output says of its own making: `smelt.json` in a folder, `<file>.smelt.json` beside a file.

It holds no time of its own making and no absolute paths, so that the same conversion of the same files gives the same
bytes anywhere.

    sources   file, bytes, modified (UTC), header_sha256: all bytes but the tensors'; sha256 of the whole file on request
    files     file, bytes, header_sha256 (but of a third party's container)
    digests   {canonical tensor: digest of its decoded values}: equal for equal models in any format, dtype or shard count
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..formats.checkpoint import SourceFile
from .headers import header_sha256
from .plan import Plan

CHUNK = 16 << 20  # bytes hashed at once


@dataclass(frozen=True)
class Record:
    """What only the run knows: digests by canonical tensor, headers by file; whether to hash the sources whole."""

    digests: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    source_digests: bool = False


def manifest(plan: Plan, record: Record) -> bytes:
    """JSON: smelt's version, the sources, the family, the recipe, every file and tensor written, and their digests."""
    document = {
        "smelt": version("smelt"),
        "sources": [_source(path, record.source_digests) for path in plan.sources],
        "architecture": plan.architecture,
        "format": plan.to,
        "recipe": plan.recipe,
        **({"provenance": dict(plan.provenance)} if plan.provenance else {}),
        "files": [
            {"file": name, "bytes": layout.nbytes}
            | ({"header_sha256": record.headers[name]} if name in record.headers else {})
            for name, layout in plan.files.items()
        ],
        "tensors": {step.name: step.scheme.name for step in plan.steps},
        "digests": dict(sorted(record.digests.items())),
        "notes": list(plan.notes),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # a file name that is not UTF-8 becomes JSON's own escape


def _source(path: Path, whole: bool) -> dict[str, Any]:
    """What tells a source file from another of its name. StorageError or InputError where it cannot be read any more."""
    status = path.stat()
    modified = datetime.fromtimestamp(int(status.st_mtime), timezone.utc)
    found: dict[str, Any] = {
        "file": path.name,
        "bytes": status.st_size,
        "modified": modified.isoformat().replace("+00:00", "Z"),
        "header_sha256": header_sha256(path),
    }
    return {**found, "sha256": _sha256(path)} if whole else found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    file = SourceFile(path)
    try:
        for offset in range(0, file.nbytes, CHUNK):
            digest.update(file.read(offset, min(CHUNK, file.nbytes - offset)))
    finally:
        file.close()
    return digest.hexdigest()
