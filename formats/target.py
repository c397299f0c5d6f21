"""May this name be written? Asked before any work, and free of side effects.

A target is refused that exists (without force), that is, holds or lies in an input, whose parent folder is missing, or
that force would replace at a greater loss than a model: a folder with folders in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import StorageError, UsageError
from .disk import storage_errors

MARGIN = 16 << 20  # free bytes to leave beyond the planned ones: the manifest, the folder's own blocks


_MARKS = {"smelt.json", "config.json"}  # a folder with one of these holds a model, which force may replace


def check_target(target: Path, *, folder: bool, force: bool, sources: Iterable[Path] = ()) -> None:
    """UsageError where `target` (a folder or one file) cannot or must not be written from `sources`."""
    if target.name in ("", ".."):
        raise UsageError(f"{target}: is not a name that can be written")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: the folder {target.parent} does not exist: make it first")
    check_sources(target, sources)
    if not os.path.lexists(target):
        return
    if not force:
        raise UsageError(f"{target}: exists already: --force replaces it")
    if target.is_dir() and not folder:
        raise UsageError(f"{target}: is a folder, the result is one file: name the file")
    if target.exists() and not target.is_dir() and folder:
        raise UsageError(f"{target}: is a file, the result is a folder: choose another name or remove it")
    if folder and target.is_dir() and not target.is_symlink():
        names = {entry.name for entry in target.iterdir()}
        if names and not names & _MARKS and not any(name.endswith(".safetensors") for name in names):
            raise UsageError(
                f"{target}: holds {min(names)} but no model: --force replaces models only: choose another name or remove it"
            )
        inner = sorted(entry.name for entry in target.iterdir() if entry.is_dir() and not entry.is_symlink())
        if inner:
            raise UsageError(
                f"{target}: holds folders ({inner[0]}), more than a model: remove it yourself or choose another name"
            )


def check_sources(target: Path, sources: Iterable[Path]) -> None:
    """UsageError if `target` is one of `sources` by name, link or inode, or if either lies inside the other."""
    places = _places(target)
    for source in sources:
        origins = _places(source)
        if places & origins or (target.exists() and source.exists() and target.samefile(source)):
            raise UsageError(f"{target}: is the input {source}: choose another target")
        if any(place in origin.parents for place in places for origin in origins):
            raise UsageError(f"{target}: contains the input {source}: choose another target")
        if source.is_dir() and any(origin in place.parents for place in places for origin in origins):
            raise UsageError(f"{target}: lies inside the input {source}: choose another target")


def _places(path: Path) -> set[Path]:
    """Where a name lies and where it leads to, both absolute."""
    return {path.parent.resolve() / path.name, path.resolve()}


def check_free_space(folder: Path, nbytes: int) -> None:
    """StorageError unless the file system of `folder` has `nbytes` + `MARGIN` free."""
    with storage_errors(folder):
        status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, nbytes + MARGIN
    if status.f_blocks and free < needed:  # some network file systems report no blocks at all
        raise StorageError(
            f"{folder}: needs {needed:,} bytes, {free:,} are free: free some space or choose another disk"
        )
