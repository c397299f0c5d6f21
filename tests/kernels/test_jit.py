"""The compiled kernels: the same bytes on any CPU, and a cache folder that does not grow for ever."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="the compiled kernels need numba")

from kernel_cases import SEARCHED
from smelt.kernels.cpu import jit

# every kernel of a room: rows of a tile and a bit, one tiny, one zero, one with an outlier
DIGEST = """
import hashlib, pkgutil
from importlib import import_module
import numpy as np
from smelt.dtypes import DTYPES
import smelt.kernels.{room}, smelt.kernels.cpu
random = np.random.RandomState(5)
rows = (random.standard_t(4, (9, 768)) * 0.05).astype(np.float32)
rows[3] *= np.float32(1e-6)
rows[5], rows[7, 3] = 0, 1000
importance = np.exp(random.standard_normal(768)).astype(np.float32)
for name in (name for _, name, _ in pkgutil.iter_modules(smelt.kernels.cpu.__path__) if name.upper() in DTYPES):
    kernel = import_module("smelt.kernels.{room}." + name)
    for words, given in (("without", None), ("with", importance)):
        packed = kernel.encode(rows, given)
        print(name, words, hashlib.sha256(packed.tobytes() + kernel.decode(packed).tobytes()).hexdigest())
"""


def digests(room, **environment):
    """{(type, with or without importance): the digest of bytes and decoded rows}."""
    run = subprocess.run(
        [sys.executable, "-c", DIGEST.replace("{room}", room)],
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    return {(name, words): digest for name, words, digest in lines}


@pytest.mark.long
@pytest.mark.timeout(1800)  # it compiles every kernel anew
def test_a_plain_cpu_without_vector_extensions_gives_the_same_bytes(tmp_path):
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    expected = digests("reference")
    names = {name for name, _ in expected}
    weighed = {name for name in names if expected[name, "with"] != expected[name, "without"]}
    assert weighed == {name for name, with_importance in SEARCHED if with_importance}
    assert names >= weighed | {"f16", "bf16", "q8_0", "mxfp4", "nvfp4", "tq1_0", "tq2_0"}
    found = digests("cpu", **plain)
    assert [name for name, digest in expected.items() if found[name] != digest] == []


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
