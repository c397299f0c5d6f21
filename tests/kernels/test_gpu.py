"""The Triton kernels: the reference's bytes, the reference's errors, and machine code that rounds as it should.

Without a CUDA device they run under Triton's interpreter, which must be switched on before Triton is imported: hence
one worker process, to which the tests send matrices. What the interpreter cannot show (division, contraction, spills)
is read from the compiled code. The interpreter takes seconds for a searched program of 4096 weights, so the searched
kernels see one program each here, and several only in the long tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the GPU kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is available on Linux only")

from smelt.errors import ValueAtError  # noqa: E402
from smelt.kernels.gpu import compile_check  # noqa: E402

WORKER = """
import json, sys
from importlib import import_module
import numpy as np, torch
device = "cuda" if torch.cuda.is_available() else "cpu"
for line in sys.stdin:
    ask = json.loads(line)
    module = import_module("smelt.kernels.gpu." + ask["type"])
    given = [torch.from_numpy(np.load(path)).to(device) for path in ask["arrays"]]
    try:
        if ask["verb"] == "encode":
            result = module.encode(given[0].to(getattr(torch, ask["dtype"])), *given[1:])
        else:
            result = module.decode(given[0], getattr(torch, ask["dtype"])).float()
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error), getattr(error, "row", -1), getattr(error, "column", -1)]))
    else:
        np.save(ask["out"], result.cpu().numpy())
        print("null")
    sys.stdout.flush()
"""
TYPES = sorted(compile_check.modules())
SEARCHED = {"q4_0.ENCODE_WEIGHTED", "q4_k.ENCODE", "q4_k.ENCODE_WEIGHTED", "q6_k.ENCODE", "q6_k.ENCODE_WEIGHTED"}
BLOCK = {name: module.DTYPE.block for name, module in compile_check.modules().items()}


class RefusedError(Exception):
    """What the worker answered instead of an array: the error's name, message, row and column."""


class Worker:
    def __init__(self, folder: Path) -> None:
        interpret = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONSAFEPATH": "1", **interpret},
        )

    def ask(self, verb: str, name: str, *arrays: Any, dtype: str = "float32") -> Any:
        paths = [self.folder / f"{i}.npy" for i in range(len(arrays))]
        for path, array in zip(paths, arrays, strict=True):
            np.save(path, array)
        out = self.folder / "out.npy"
        ask = {"verb": verb, "type": name, "arrays": [str(p) for p in paths], "out": str(out), "dtype": dtype}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if answer is not None:
            raise RefusedError(*answer)
        return np.load(out)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("gpu"))
    yield worker
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    worker.process.wait(timeout=60)


def reference(name: str) -> Any:
    return import_module(f"smelt.kernels.reference.{name}")


def awkward(n: int, columns: int, seed: int = 0) -> Any:
    """Normal weights, and rows of zeros, one value, subnormals, an outlier, a shift, repeats and ties."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, columns)).astype(np.float32)
    kinds = [
        lambda row: row * 0,
        lambda row: row * 0 + np.float32(1.5),
        lambda row: row * 0 - np.float32(1.5),
        lambda row: row * np.float32(1e-40),
        lambda row: row * np.float32(1e-9),
        lambda row: np.where(np.arange(columns) == 5, np.float32(900), row),
        lambda row: row + np.float32(3),
        lambda row: np.float32(0.15) * np.round(row * 4),
        lambda row: row * np.float32(3e4),
        lambda row: np.float32(-0.0) * np.abs(row),
    ]
    for i, kind in enumerate(kinds[: max(n - 1, 0)]):
        x[i] = kind(x[i])
    return x


def importance(columns: int) -> Any:
    values = np.random.default_rng(9).chisquare(1, columns).astype(np.float32)
    values[::50] = 0
    return values


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (11, 12), (43, 3)], ids=str)
def test_simple_types_give_the_reference_bytes(gpu: Worker, name: str, shape: tuple[int, int]) -> None:
    x = awkward(shape[0], shape[1] * 32, sum(shape))
    assert np.array_equal(gpu.ask("encode", name, x), reference(name).encode(x))


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_simple_types_give_the_bytes_of_the_gguf_package(gpu: Worker, name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is the oracle")
    x = np.random.default_rng(3).standard_t(3, (9, 224)).astype(np.float32)
    assert np.array_equal(gpu.ask("encode", name, x), quants.quantize(x, quants.GGMLQuantizationType[name.upper()]))


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_rows_may_lie_in_any_order(gpu: Worker, name: str) -> None:
    x = awkward(6, 96)
    assert np.array_equal(gpu.ask("encode", name, np.asfortranarray(x)), reference(name).encode(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_16_bit_rows_are_encoded_as_their_float32_values(gpu: Worker, name: str, dtype: str) -> None:
    x = torch.from_numpy(np.random.default_rng(4).standard_normal((5, 96)).astype(np.float32)).to(getattr(torch, dtype))
    wide = x.float().numpy()
    assert np.array_equal(gpu.ask("encode", name, wide, dtype=dtype), reference(name).encode(wide))


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_searched_types_give_the_reference_bytes(gpu: Worker, name: str) -> None:
    x = awkward(7, 256, 1) if name == "q6_k" else awkward(13, 256, 1)
    assert np.array_equal(gpu.ask("encode", name, x), reference(name).encode(x))


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k"])
def test_importance_gives_the_reference_bytes(gpu: Worker, name: str) -> None:
    x = awkward(3, 512, 2)
    given = importance(512)
    packed = gpu.ask("encode", name, np.asfortranarray(x), given)
    assert np.array_equal(packed, reference(name).encode(x, given))
    assert not np.array_equal(packed, reference(name).encode(x))


@pytest.mark.long
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q6_k"])
def test_several_programs_give_the_reference_bytes(gpu: Worker, name: str, weighted: bool) -> None:
    x = awkward(13, 768, 5)
    given = [importance(768)] if weighted else []
    assert np.array_equal(gpu.ask("encode", name, x, *given), reference(name).encode(x, *given))


@pytest.mark.parametrize("name", TYPES)
def test_no_rows_give_no_bytes(gpu: Worker, name: str) -> None:
    dtype = compile_check.modules()[name].DTYPE
    assert gpu.ask("encode", name, np.zeros((0, 512), np.float32)).shape == (0, dtype.row_nbytes(512))
    assert gpu.ask("decode", name, np.zeros((0, dtype.row_nbytes(512)), np.uint8)).shape == (0, 512)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 5)], ids=str)
def test_decodes_any_bytes_as_the_reference_does(gpu: Worker, name: str, shape: tuple[int, int]) -> None:
    dtype = compile_check.modules()[name].DTYPE
    random = np.random.default_rng(sum(shape))
    packed = random.integers(0, 256, (shape[0] * shape[1], dtype.nbytes), dtype=np.uint8)
    for at in {"q4_0": [0], "q8_0": [0], "q4_k": [0, 2], "q6_k": [208]}.get(name, []):
        packed[:, at : at + 2] = random.standard_normal(len(packed)).astype("<f2").view(np.uint8).reshape(-1, 2)
    packed = packed.reshape(shape[0], -1)
    want = reference(name).decode(packed)
    assert np.array_equal(gpu.ask("decode", name, packed).view(np.uint32), want.view(np.uint32))
    assert np.array_equal(gpu.ask("decode", name, packed, dtype="float16"), want.astype(np.float16).astype(np.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter truncates to bfloat16")
@pytest.mark.parametrize("name", TYPES)
def test_decodes_to_the_nearest_bfloat16(gpu: Worker, name: str) -> None:
    packed = reference(name).encode(awkward(12, 512))
    want = torch.from_numpy(reference(name).decode(packed)).bfloat16().float().numpy()
    assert np.array_equal(gpu.ask("decode", name, packed, dtype="bfloat16"), want)


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_names_the_first_non_finite_weight(gpu: Worker, name: str, value: float) -> None:
    x = awkward(7, 96)
    x[3, 17] = value
    x[5, 2] = float("nan")
    with pytest.raises(RefusedError) as refused:
        gpu.ask("encode", name, x)
    kind = "NaN" if np.isnan(value) else "infinity"
    assert refused.value.args == ("NonFiniteError", f"{kind} at row 3, column 17", 3, 17)


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_searched_types_name_nan_even_beside_an_overflow(gpu: Worker, name: str) -> None:
    x = awkward(3, 256)
    x[0, 3] = 1e30
    x[1, 250] = float("nan")
    with pytest.raises(RefusedError) as refused:
        gpu.ask("encode", name, x)
    assert refused.value.args == ("NonFiniteError", "NaN at row 1, column 250", 1, 250)


@pytest.mark.parametrize(("name", "value"), [("q4_0", 1e8), ("q8_0", 1e8), ("q4_k", 3e8), ("q6_k", 1e30)])
def test_refuses_what_fp16_scales_cannot_hold_as_the_reference_does(gpu: Worker, name: str, value: float) -> None:
    x = awkward(7, max(96, BLOCK[name]))
    x[4, 40] = value
    with pytest.raises(ValueAtError, match="row 4, column") as wanted:
        reference(name).encode(x)
    with pytest.raises(RefusedError) as refused:
        gpu.ask("encode", name, x)
    error = wanted.value
    assert refused.value.args == ("ScaleOverflowError", str(error), error.row, error.column)


def test_refuses_columns_that_are_no_whole_blocks_and_bytes_that_are_no_rows(gpu: Worker) -> None:
    with pytest.raises(RefusedError, match="ModelError"):
        gpu.ask("encode", "q8_0", np.zeros((2, 48), np.float32))
    with pytest.raises(RefusedError, match="InputError"):
        gpu.ask("decode", "q8_0", np.zeros((2, 35), np.uint8))


def test_every_gpu_kernel_has_a_reference_of_its_name() -> None:
    for name, module in compile_check.modules().items():
        assert module.DTYPE == reference(name).DTYPE


def check_compiled(name: str, capability: int, float_type: str) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET is set: nothing can be compiled in this process")
    compiled = compile_check.compile_launch(compile_check.launches()[name], capability, float_type)
    assert compiled.stack == 0
    assert compiled.inexact == []


QUICK = [(n, c) for n in sorted(set(compile_check.launches()) - SEARCHED) for c in compile_check.CAPABILITIES]


@pytest.mark.parametrize(("name", "capability"), [*QUICK, ("q6_k.ENCODE", 90)])
def test_compiles_without_spills_and_inexact_instructions(name: str, capability: int) -> None:
    check_compiled(name, capability, "fp32")


@pytest.mark.long
@pytest.mark.parametrize("float_type", compile_check.FLOAT_TYPES)
@pytest.mark.parametrize("capability", compile_check.CAPABILITIES)
@pytest.mark.parametrize("name", sorted(compile_check.launches()))
def test_compiles_for_every_float_type(name: str, capability: int, float_type: str) -> None:
    check_compiled(name, capability, float_type)
