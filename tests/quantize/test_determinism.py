"""The same bytes from every number of threads, slab size and company of other schemes, and from code compiled for any CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from meta_checkpoints import write_meta
from smelt.api import quantize, quantized_plans
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run_all

OPTIONS = OpenOptions(context_length=128)
SCHEMES = ("q4_k_m", "q3_k_m", "q5_0", "q8_0")
PORTABLE = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "meta"
    write_meta(path, dim=256, n_shards=2, n_layers=1)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Each scheme's file, made by itself on one thread, each tensor one slab."""
    made = {}
    for scheme in SCHEMES:
        target = tmp_path_factory.mktemp("alone") / "m.gguf"
        quantize(folder, target, scheme, options=OPTIONS, threads=1)
        made[scheme] = target.read_bytes()
    return made


@pytest.mark.parametrize("slab", [1 << 20, 50_000, 1_000])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_slabs_and_company_never_show_in_a_searched_file(
    folder: Path, alone: dict[str, bytes], tmp_path: Path, threads: int, slab: int
) -> None:
    plans = quantized_plans(folder, tmp_path / "{scheme}.gguf", SCHEMES, options=OPTIONS)
    for scheme, result in zip(SCHEMES, run_all(plans, RunOptions(threads, slab=slab)), strict=True):
        assert result.target.read_bytes() == alone[scheme], scheme


@pytest.mark.long  # every kernel is compiled anew: 90 s on a core
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("scheme", ["q4_k_m", "q3_k_m"])
def test_a_command_compiled_for_no_cpu_in_particular_writes_the_same_file(
    tiny_llama: Path, tmp_path: Path, scheme: str
) -> None:
    made = []
    for name, settings in (("native", {}), ("generic", {**PORTABLE, "NUMBA_CACHE_DIR": str(tmp_path / "cache")})):
        target = tmp_path / name / "m.gguf"
        target.parent.mkdir()
        words = [
            sys.executable,
            "-P",
            "-m",
            "smelt",
            "quantize",
            str(tiny_llama),
            str(target),
            "--scheme",
            scheme,
            "--context-length",
            "512",
            "-q",
        ]
        subprocess.run(words, check=True, env={**os.environ, **settings}, timeout=900)
        made.append([path.read_bytes() for path in sorted(target.parent.iterdir())])
    assert len(made[0]) == 2
    assert made[0] == made[1]
