"""One decorator compiles every kernel of this folder: strict IEEE arithmetic, the GIL released, cached on disk.

    fastmath off            NaN checks stay, sums keep their order, nothing is contracted: the same bytes on any CPU
    error_model "numpy"     a division is one instruction, without a branch for zero
    cache                   <user cache>/smelt/numba-<digest of cpu/ and reference/>: not beside the source, which a
                            read-only installation could not write, and new where any source changes: numba looks
                            at a kernel's own file alone, but compiles functions and constants of others into it

A folder that no process has used for 30 days is removed when one of other sources is made.
Numba's own NUMBA_CACHE_DIR wins where it is set. Where no folder can be written, every process compiles anew.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., object])

STALE = 30 * 86400  # seconds since a folder was last used


def jit(function: Kernel) -> Kernel:
    """Compile `function` on its first call."""
    config: Any = numba.config
    compiled: Any = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    before = config.CACHE_DIR
    folder = before or _cache_folder()
    if folder:
        config.CACHE_DIR = folder  # read by enable_caching, and other users of numba must not see it
        try:
            compiled.enable_caching()
        finally:
            config.CACHE_DIR = before
    kernel: Kernel = compiled
    return kernel


@cache
def _cache_folder() -> str:
    """The folder for compiled kernels of just these sources, made; empty where it cannot be written."""
    digest = blake2b(numba.__version__.encode(), digest_size=8)
    here = Path(__file__).parent
    for source in sorted((*here.glob("*.py"), *(here.parent / "reference").glob("*.py"))):
        digest.update(source.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(root) / "smelt" / f"numba-{digest.hexdigest()}"
    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # its time says when it was last used
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        return ""
    if new:
        _remove_stale(folder)
    return str(folder)


def _remove_stale(used: Path) -> None:
    """Remove the folders beside `used` that no process has used for long; what cannot be removed stays."""
    for folder in used.parent.glob("numba-*"):
        try:
            stale = folder.stat().st_mtime < time.time() - STALE
        except OSError:
            continue  # another process removed it
        if stale and folder != used:
            shutil.rmtree(folder, ignore_errors=True)
