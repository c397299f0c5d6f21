"""The Triton kernels: the reference's bytes, the reference's errors, and machine code that rounds as it should.

Without a CUDA device they run under Triton's interpreter, which must be switched on before Triton is imported: hence
one worker process, to which the tests send matrices. What the interpreter cannot show (division, contraction, spills)
is read from the compiled code. The interpreter takes seconds for a searched program of 4096 weights, so the default
tests try one type of each search with one program; the other types and several programs are for the long tests. Types are
found in the folder, not listed.
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

from kernel_cases import EXACT  # noqa: E402
from kernel_cases import SEARCHED as SEARCHES  # noqa: E402
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
MODULES = compile_check.modules()
TYPES = sorted(MODULES)
PLAIN = [name for name in TYPES if name in (*EXACT, "f16", "bf16")]  # nothing is searched without importance
BLOCK = {name: max(module.DTYPE.block, 32) for name, module in MODULES.items()}
LARGEST = {"nvfp4": 2700.0, "q4_1": 3e4, "q5_1": 3e4}  # where a format cannot hold every fp16 number
ONE_OF_EACH = {("q4_k", False), ("q6_k", False), ("iq4_nl", False), ("q4_0", True), ("q4_1", True), ("q6_k", True)}
ONE_OF_EACH |= {("q2_k", False), ("q3_k", True)}


def searched(*, quick: bool) -> list[Any]:
    """Each searched (type, with importance); marked long, but for one of each search where `quick`."""
    cases = [
        (name, weighted)
        for name in TYPES
        if hasattr(MODULES[name], "encode")
        for weighted in (False, True)
        if (name, True) in SEARCHES and (weighted or name not in PLAIN)
    ]
    return [
        pytest.param(*case, marks=() if quick and case in ONE_OF_EACH else pytest.mark.long, id=f"{case[0]}-{case[1]}")
        for case in cases
    ]


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
    return np.clip(x, -65504, 65504)


def rows_for(name: str, n: int, n_blocks: int, seed: int = 0) -> Any:
    """`awkward` rows of whole blocks that the type can hold."""
    largest = np.float32(LARGEST.get(name, 65504))
    return np.clip(awkward(n, n_blocks * BLOCK[name], seed), -largest, largest)


def importance(columns: int) -> Any:
    values = np.random.default_rng(9).chisquare(1, columns).astype(np.float32)
    values[::50] = 0
    return values


def same_numbers(found: Any, wanted: Any) -> bool:
    """The same bits, whatever the bits of a NaN."""
    return bool(np.all((found.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(found) & np.isnan(wanted))))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("shape", [(1, 1), (11, 12), (43, 3)], ids=str)
def test_simple_types_give_the_reference_bytes(gpu: Worker, name: str, shape: tuple[int, int]) -> None:
    x = rows_for(name, *shape, seed=sum(shape))
    assert np.array_equal(gpu.ask("encode", name, x), reference(name).encode(x))


@pytest.mark.parametrize("name", sorted(set(PLAIN) & set(EXACT) - {"nvfp4"}))
def test_simple_types_give_the_bytes_of_the_gguf_package(gpu: Worker, name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="the gguf package is the oracle")
    x = np.random.default_rng(3).standard_t(3, (9, 768)).astype(np.float32)
    assert np.array_equal(gpu.ask("encode", name, x), quants.quantize(x, quants.GGMLQuantizationType[name.upper()]))


def test_numbers_just_below_a_power_of_two_count_as_ggml_counts_them(gpu: Worker) -> None:
    powers = np.exp2(np.arange(-126, 128, dtype=np.float32))
    x = np.stack([np.nextafter(powers, np.float32(0)), powers], axis=1).reshape(-1, 1).repeat(32, axis=1)
    for steps in range(3):
        below = (x.view(np.uint32) - np.uint32(steps * 40)).view(np.float32)
        assert np.array_equal(gpu.ask("encode", "mxfp4", below), reference("mxfp4").encode(below))


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
def test_rows_may_lie_in_any_order(gpu: Worker, name: str) -> None:
    x = awkward(6, 96)
    assert np.array_equal(gpu.ask("encode", name, np.asfortranarray(x)), reference(name).encode(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", PLAIN)
def test_16_bit_rows_are_encoded_as_their_float32_values(gpu: Worker, name: str, dtype: str) -> None:
    x = torch.from_numpy(rows_for(name, 12, 3, 4) * np.float32(0.99)).to(getattr(torch, dtype))
    wide = x.float().numpy()
    assert np.array_equal(gpu.ask("encode", name, wide, dtype=dtype), reference(name).encode(wide))


@pytest.mark.parametrize(("name", "weighted"), searched(quick=True))
def test_searched_types_give_the_reference_bytes(gpu: Worker, name: str, weighted: bool) -> None:
    x = rows_for(name, 13, 1, 1)
    given = [importance(x.shape[1])] if weighted else []
    packed = gpu.ask("encode", name, np.asfortranarray(x), *given)
    assert np.array_equal(packed, reference(name).encode(x, *given))
    if weighted:
        assert not np.array_equal(packed, reference(name).encode(x))


def test_a_codebook_search_of_one_program_gives_the_reference_bytes(gpu: Worker) -> None:
    x = rows_for("iq2_s", 4, 1, 1)
    given = importance(x.shape[1])
    assert np.array_equal(gpu.ask("encode", "iq2_s", x, given), reference("iq2_s").encode(x, given))


@pytest.mark.parametrize(("name", "weighted"), searched(quick=False))
def test_several_programs_give_the_reference_bytes_of_16_bit_rows(gpu: Worker, name: str, weighted: bool) -> None:
    x = torch.from_numpy(rows_for(name, 13, 768 // BLOCK[name], 5) * np.float32(0.99))
    x = x.bfloat16().float().numpy()
    given = [importance(x.shape[1])] if weighted else []
    assert np.array_equal(gpu.ask("encode", name, x, *given, dtype="bfloat16"), reference(name).encode(x, *given))


@pytest.mark.parametrize("name", TYPES)
def test_no_rows_give_no_bytes(gpu: Worker, name: str) -> None:
    dtype = MODULES[name].DTYPE
    if hasattr(MODULES[name], "encode"):
        assert gpu.ask("encode", name, np.zeros((0, 512), np.float32)).shape == (0, dtype.row_nbytes(512))
    assert gpu.ask("decode", name, np.zeros((0, dtype.row_nbytes(512)), np.uint8)).shape == (0, 512)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 5)], ids=str)
def test_decodes_any_bytes_as_the_reference_does(gpu: Worker, name: str, shape: tuple[int, int]) -> None:
    dtype = MODULES[name].DTYPE
    random = np.random.default_rng(sum(shape))
    packed = random.integers(0, 256, (shape[0], shape[1] * dtype.nbytes), dtype=np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        want = reference(name).decode(packed)
        half = want.astype(np.float16).astype(np.float32)
    assert same_numbers(gpu.ask("decode", name, packed), want)
    assert same_numbers(gpu.ask("decode", name, packed, dtype="float16"), half)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter truncates to bfloat16")
@pytest.mark.parametrize("name", TYPES)
def test_decodes_to_the_nearest_bfloat16(gpu: Worker, name: str) -> None:
    packed = np.random.default_rng(8).integers(0, 128, (12, MODULES[name].DTYPE.nbytes * 2), dtype=np.uint8)
    want = torch.from_numpy(reference(name).decode(packed)).bfloat16().float().numpy()
    assert np.array_equal(gpu.ask("decode", name, packed, dtype="bfloat16"), want)


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_names_the_first_non_finite_weight(gpu: Worker, name: str, value: float) -> None:
    x = rows_for(name, 7, 3)
    x[3, 17] = value
    x[5, 2] = float("nan")
    with pytest.raises(RefusedError) as refused:
        gpu.ask("encode", name, x)
    kind = "NaN" if np.isnan(value) else "infinity"
    assert refused.value.args == ("NonFiniteError", f"{kind} at row 3, column 17", 3, 17)


@pytest.mark.parametrize("name", ["iq4_nl", *(pytest.param(n, marks=pytest.mark.long) for n in ("q4_k", "q6_k"))])
def test_searched_types_name_nan_even_beside_an_overflow(gpu: Worker, name: str) -> None:
    x = awkward(3, 256)
    x[0, 3] = 1e30
    x[1, 250] = float("nan")
    with pytest.raises(RefusedError) as refused:
        gpu.ask("encode", name, x)
    assert refused.value.args == ("NonFiniteError", "NaN at row 1, column 250", 1, 250)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, {"nvfp4": 3e3, "bf16": 3.399e38}.get(name, 1e8)) for name in PLAIN if name != "mxfp4"),
        ("iq4_nl", 1e8),
        ("iq4_nl", 1e30),
        pytest.param("q4_k", 3e8, marks=pytest.mark.long),
        pytest.param("q6_k", 1e30, marks=pytest.mark.long),
    ],
)
def test_refuses_what_fp16_scales_cannot_hold_as_the_reference_does(gpu: Worker, name: str, value: float) -> None:
    x = rows_for(name, 7, 3)
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
    for name, module in MODULES.items():
        assert module.DTYPE == reference(name).DTYPE
        assert hasattr(module, "encode") == hasattr(reference(name), "encode")


def check_compiled(name: str, capability: int, float_type: str) -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET is set: nothing can be compiled in this process")
    compiled = compile_check.compile_launch(compile_check.launches()[name], capability, float_type)
    assert compiled.stack == 0
    assert compiled.inexact == []


@pytest.mark.parametrize("name", [*(f"{name}.ENCODE" for name in PLAIN), "q6_k.ENCODE"])
def test_compiles_without_spills_and_inexact_instructions(name: str) -> None:
    check_compiled(name, 90, "fp32")


LAUNCHES = sorted(compile_check.launches())
VARIANTS = [(c, "fp32") for c in compile_check.CAPABILITIES] + [(90, "fp16"), (90, "bf16")]
# Compiling is slow: each launch once among the long tests, in another way than its neighbours; every launch in every way,
# five times as many, among the exhaustive ones.
SAMPLED = [(name, *VARIANTS[number % len(VARIANTS)]) for number, name in enumerate(LAUNCHES)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "capability", "float_type"), SAMPLED)
def test_compiles_for_some_card_and_float_type(name: str, capability: int, float_type: str) -> None:
    check_compiled(name, capability, float_type)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "capability", "float_type"),
    [(name, *variant) for name in LAUNCHES for variant in VARIANTS if (name, *variant) not in SAMPLED],
)
def test_compiles_for_every_card_and_float_type(name: str, capability: int, float_type: str) -> None:
    check_compiled(name, capability, float_type)
