"""The same bytes from every number of threads, slab size and company of other schemes, and from code compiled for any CPU."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from meta_checkpoints import write_meta
from smelt.api import quantized_plans
from smelt.convert.options import OpenOptions
from smelt.convert.plan import Plan
from smelt.convert.run import RunOptions, run, run_all
from smelt.quantize.choose import ChooseOptions

OPTIONS = OpenOptions(context_length=128)
SCHEMES = ("q4_k_m", "q3_k_m", "q5_0", "q8_0", "iq2_xs")
AS_MXFP4 = ChooseOptions(tensor_types=(("attn_|ffn_", "mxfp4"),))
PORTABLE = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("meta") / "meta"
    write_meta(path, dim=256, n_shards=2, n_layers=1)
    return path


@pytest.fixture(scope="module")
def imatrix(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An importance of every matrix but the embedding, as llama-imatrix wrote it at first."""
    random = np.random.RandomState(3)
    (plan,) = quantized_plans(folder, folder.with_name("none.gguf"), ["q8_0"], options=OPTIONS)
    shapes = {step.name: step.tensor.shape for step in plan.steps if len(step.tensor.shape) == 2}
    columns = {name: shape[-1] for name, shape in shapes.items() if name != "token_embd.weight"}
    content = struct.pack("<i", len(columns))
    for name, n in columns.items():
        values = np.exp(random.standard_normal(n)).astype("<f4")
        content += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, n) + values.tobytes()
    path = tmp_path_factory.mktemp("imatrix") / "i.dat"
    path.write_bytes(content)
    return path


def all_plans(folder: Path, imatrix: Path, target: Path) -> list[Plan]:
    """One for each of the schemes, and one with most matrices as MXFP4."""
    plans = quantized_plans(folder, target / "{scheme}.gguf", SCHEMES, imatrix=imatrix, options=OPTIONS)
    mixed = quantized_plans(folder, target / "mxfp4.gguf", ["q8_0"], imatrix=imatrix, choices=AS_MXFP4, options=OPTIONS)
    return [*plans, *mixed]


@pytest.fixture(scope="module")
def alone(folder: Path, imatrix: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Each plan's file, made by itself on one thread, each tensor one slab."""
    plans = all_plans(folder, imatrix, tmp_path_factory.mktemp("alone"))
    return {plan.target.name: run(plan, RunOptions(1)).target.read_bytes() for plan in plans}


@pytest.mark.parametrize("slab", [1 << 20, 50_000, 1_000])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_slabs_and_company_never_show_in_a_file(
    folder: Path, imatrix: Path, alone: dict[str, bytes], tmp_path: Path, threads: int, slab: int
) -> None:
    for result in run_all(all_plans(folder, imatrix, tmp_path), RunOptions(threads, slab=slab)):
        assert result.target.read_bytes() == alone[result.target.name], result.target.name


def test_the_files_hold_the_types_that_are_tried(folder: Path, imatrix: Path, tmp_path: Path) -> None:
    found = {scheme for plan in all_plans(folder, imatrix, tmp_path) for scheme in plan.schemes}
    assert found >= {"q4_k", "q6_k", "q3_k", "q5_0", "q8_0", "iq2_xs", "mxfp4"}


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
