"""The compiled kernels: the same bytes on any CPU, and a cache folder that does not grow for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="the compiled kernels need numba")

from smelt.kernels.cpu import jit

# one type for each shared search, for the plain rounding and for the levels of a table
DIGEST = """
import hashlib
from importlib import import_module
import numpy as np
random = np.random.RandomState(5)
rows = (random.standard_t(4, (9, 768)) * 0.05).astype(np.float32)
rows[3] *= np.float32(1e-6)
importance = np.exp(random.standard_normal(768)).astype(np.float32)
for name in ("q4_k", "q6_k", "iq4_nl", "q5_0", "q4_1", "q8_0"):
    kernel = import_module("smelt.kernels.{room}." + name)
    for given in (None, importance):
        packed = kernel.encode(rows, given)
        print(name, hashlib.sha256(packed.tobytes() + kernel.decode(packed).tobytes()).hexdigest())
"""


def digests(room, **environment):
    run = subprocess.run(
        [sys.executable, "-c", DIGEST.replace("{room}", room)],
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.splitlines()


@pytest.mark.long
@pytest.mark.timeout(1200)  # it compiles every kernel anew
def test_a_plain_cpu_without_vector_extensions_gives_the_same_bytes(tmp_path):
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    expected = digests("reference")
    assert len(set(expected)) == 11  # q8_0 has no use for importance
    assert digests("cpu", **plain) == expected


def stale_and_young(root):
    """One folder of each kind beside the cache, and one that is not the cache's."""
    names = ("numba-0123456789abcdef", "numba-fedcba9876543210", "models")
    for name in names:
        (root / "smelt" / name / "inner").mkdir(parents=True)
    long_ago = time.time() - jit.STALE - 60
    for name in (names[0], names[2]):
        os.utime(root / "smelt" / name, (long_ago, long_ago))
    return [root / "smelt" / name for name in names]


def test_a_new_cache_folder_removes_those_long_unused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stale, young, foreign = stale_and_young(tmp_path)
    made = jit._cache_folder.__wrapped__()
    assert Path(made).is_dir()
    assert not stale.exists() and young.exists() and foreign.exists()


def test_an_old_cache_folder_in_use_counts_as_used_and_removes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = jit._cache_folder.__wrapped__()
    stale, _, _ = stale_and_young(tmp_path)
    os.utime(made, (0, 0))
    assert jit._cache_folder.__wrapped__() == made
    assert Path(made).stat().st_mtime > time.time() - 3600
    assert stale.exists()


def test_no_cache_folder_where_none_can_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert jit._cache_folder.__wrapped__() == ""
