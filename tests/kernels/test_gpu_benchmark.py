"""The benchmark of the GPU kernels runs where there is no card, and says that it measured nothing there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the benchmark takes torch tensors")
pytest.importorskip("triton", reason="Triton is available on Linux only")

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card: the program would measure it")


def benchmark(*words: str, **environment: str) -> str:
    command = [sys.executable, "-P", "-W", "ignore", str(PROGRAM), *words]
    merged = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=merged).stdout


def test_without_a_card_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    said = benchmark("--json", str(tmp_path / "gpu.json"), TRITON_INTERPRET="0")
    assert said == "not yet measured: no CUDA device\n"
    assert not (tmp_path / "gpu.json").exists()


def test_the_program_runs_under_the_interpreter(tmp_path: Path) -> None:
    words = ["--rows", "2", "--columns", "256", "--repeats", "1", "--types", "q8_0", "q4_1"]
    said = benchmark("--json", str(tmp_path / "gpu.json"), *words, TRITON_INTERPRET="1")
    assert "whose times mean nothing" in said
    lines = json.loads((tmp_path / "gpu.json").read_text())["kernels"]
    kernels = {line["kernel"] for line in lines}
    assert kernels == {"q4_1 encode, importance", "q8_0 pipeline"} | {
        f"{name} {verb}" for name in ("q8_0", "q4_1") for verb in ("encode", "decode")
    }
    assert all(line["seconds"] > 0 and line["bytes_per_second"] > 0 for line in lines)
