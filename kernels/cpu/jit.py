"""One decorator compiles every kernel of this folder: strict IEEE arithmetic, the GIL released, cached on disk.

    fastmath off            NaN checks stay, sums keep their order, nothing is contracted: the same bytes on any CPU
    error_model "numpy"     a division is one instruction, without a branch for zero
    cache                   <user cache>/smelt/numba-<digest of cpu/ and reference/>: not beside the source, which a
                            read-only installation could not write, and new where any source changes: numba looks
                            at a kernel's own file alone, but compiles functions and constants of others into it

Numba's own NUMBA_CACHE_DIR wins where it is set. Where no folder can be written, every process compiles anew.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., object])


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
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:
        return ""
