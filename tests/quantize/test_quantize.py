"""Several schemes in one pass over the source: the same bytes as one at a time, each slab read once, all or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from meta_checkpoints import write_meta
from smelt.api import convert_plan, quantize, quantized_plans
from smelt.convert.model import LazyTensor
from smelt.convert.options import OpenOptions
from smelt.convert.plan import Plan, Step
from smelt.convert.run import RunOptions, run_all
from smelt.errors import StorageError, UsageError

OPTIONS = OpenOptions(context_length=128)
SCHEMES = ["q8_0", "f16", "q4_0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "meta"
    write_meta(path, dim=256, n_shards=2)
    return path


@pytest.mark.parametrize(("threads", "slab"), [(1, 1 << 20), (3, 1000)])
def test_the_bytes_are_those_of_one_at_a_time(folder: Path, tmp_path: Path, threads: int, slab: int) -> None:
    plans = quantized_plans(folder, tmp_path / "m.{scheme}.gguf", SCHEMES, options=OPTIONS)
    results = run_all(plans, RunOptions(threads, slab=slab))
    assert [result.target.name for result in results] == ["m.q8_0.gguf", "m.f16.gguf", "m.q4_0.gguf"]
    for scheme, result in zip(SCHEMES, results, strict=True):
        alone = tmp_path / "alone" / result.target.name
        alone.parent.mkdir(exist_ok=True)
        one = quantize(folder, alone, scheme, options=OPTIONS)
        for file, wanted in zip(result.files, one.files, strict=True):
            assert file.read_bytes() == wanted.read_bytes()
        assert replace(result, seconds=0, target=alone, files=()) == replace(one, seconds=0, files=())


def counted(plan: Plan, reads: list[tuple[str, int, int]]) -> Plan:
    """`plan` with tensors that write down what is read of them."""

    def watch(step: Step) -> Step:
        def read(start: int, stop: int) -> np.ndarray:
            reads.append((step.name, start, stop))
            return step.tensor.read(start, stop)

        return replace(step, tensor=LazyTensor(step.tensor.name, step.tensor.shape, step.tensor.dtype, read))

    return replace(plan, steps=tuple(watch(step) for step in plan.steps))


def test_each_slab_is_read_once(folder: Path, tmp_path: Path) -> None:
    reads: list[tuple[str, int, int]] = []
    plans = quantized_plans(folder, tmp_path / "m.{scheme}.gguf", SCHEMES, options=OPTIONS)
    run_all([counted(plan, reads) for plan in plans], RunOptions(2, slab=4096))
    assert len(reads) == len(set(reads)) > len(plans[0].steps)


def test_nothing_is_published_where_one_cannot_be(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.q4_0.gguf").touch()
    plans = quantized_plans(folder, tmp_path / "m.{scheme}.gguf", SCHEMES, options=OPTIONS)
    with pytest.raises(UsageError, match="exists already"):
        run_all(plans, RunOptions(2))
    assert [path.name for path in tmp_path.iterdir()] == ["m.q4_0.gguf"]


def test_nothing_is_published_where_the_last_slab_fails(folder: Path, tmp_path: Path) -> None:
    def read(_start: int, _stop: int) -> np.ndarray:
        raise StorageError("the disk is gone")

    plans = quantized_plans(folder, tmp_path / "m.{scheme}.gguf", SCHEMES, options=OPTIONS)
    broken = []
    for plan in plans:
        last = replace(plan.steps[-1], tensor=replace(plan.steps[-1].tensor, read=read))
        broken.append(replace(plan, steps=(*plan.steps[:-1], last)))
    with pytest.raises(StorageError, match="the disk is gone"):
        run_all(broken, RunOptions(2))
    assert list(tmp_path.iterdir()) == []


def test_several_schemes_need_a_place_for_the_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"3 schemes need a name each: put \{scheme\} into TARGET"):
        quantized_plans(folder, tmp_path / "m.gguf", SCHEMES, options=OPTIONS)
    with pytest.raises(UsageError, match="q4_k_m is asked for twice"):
        quantized_plans(folder, tmp_path / "m.{scheme}.gguf", ["q4_k", "q4_k_m"], options=OPTIONS)
    (plan,) = quantized_plans(folder, tmp_path / "m.{scheme}.gguf", ["Q4_0"], options=OPTIONS)
    assert plan.target == tmp_path / "m.q4_0.gguf"


def test_plans_of_different_kinds_do_not_share_a_run(folder: Path, tmp_path: Path) -> None:
    gguf = convert_plan(folder, tmp_path / "a.gguf", options=OPTIONS)
    hugging_face = convert_plan(folder, tmp_path / "hf", options=OPTIONS)
    with pytest.raises(UsageError, match="of the same model in the same format"):
        run_all([gguf, hugging_face], RunOptions(1))


def test_the_command_line_prints_a_list_of_targets(folder: Path, tmp_path: Path) -> None:
    words = ["quantize", folder, tmp_path / "m.{scheme}.gguf", "--scheme", "q4_0", "--scheme", "q8_0", "--json"]
    command = [sys.executable, "-P", "-m", "smelt", *map(str, words), "--context-length", "128"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [Path(one["target"]).name for one in found["targets"]] == ["m.q4_0.gguf", "m.q8_0.gguf"]
    assert all(one["bytes"] == Path(one["target"]).stat().st_size for one in found["targets"])
