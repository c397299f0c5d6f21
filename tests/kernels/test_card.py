"""The pipeline to a card gives the CPU's bytes: in pieces, with too little memory, for damaged slabs, with a wrong kernel.

Triton's interpreter stands in for the card, in a process of its own, for it must be switched on before Triton is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from smelt.dtypes import F16, Q4_K, Q8_0
from smelt.kernels.card import has_kernel

pytest.importorskip("torch", reason="the GPU kernels take torch tensors")
pytest.importorskip("triton", reason="Triton is available on Linux only")

SCRIPT = """
import json, threading
import numpy as np, torch
from smelt.dtypes import BF16, F16, F32, F64, Q4_1, Q5_0, Q8_0
from smelt.errors import DeviceError, ValueAtError
from smelt.kernels.gpu import pipeline, q8_0
from smelt.kernels.gpu.pipeline import Card, allocate
from smelt.kernels.scheme import decode, kernel

x = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
raw, importance, found = x.view(np.uint8), np.arange(96, dtype=np.float32), {}

def same(card, dtype, source=F32, given=None):
    stored = kernel(source).encode(x)
    return bool(np.array_equal(card.encode(dtype, source, stored, given), kernel(dtype).encode(decode(source, stored), given)))

for height in (1, 7, 50, 1000):
    found[f"pieces of {height}"] = same(Card("cpu", piece=96 * height), Q8_0)
for source in (F16, BF16, F64):
    found[f"rows of {source}"] = same(Card("cpu", piece=96 * 20), Q5_0, source)
found["importance"] = same(Card("cpu", piece=96 * 30), Q4_1, F32, importance)
found["no rows"] = list(Card("cpu").encode(Q8_0, F32, raw[:0], None).shape)

asked = []
def tight(shape, dtype, device):
    asked.append(shape[0])
    if shape[0] > 3:
        raise torch.OutOfMemoryError("pretended")
    return allocate(shape, dtype, device)
card = Card("cpu", piece=96 * 16, allocate=tight)
found["little memory"], found["asked"] = same(card, Q5_0), asked[:5]
found["remembers"] = card.piece // 96

def none(shape, dtype, device):
    raise torch.OutOfMemoryError("pretended")
try:
    Card("cpu", allocate=none).encode(Q8_0, F32, raw, None)
except DeviceError as error:
    found["no memory"] = str(error)

x[40, 3], x[2, 2] = np.nan, 1e30
card = Card("cpu", piece=96 * 7)
try:
    card.encode(Q8_0, F32, raw, None)
except ValueAtError as error:
    found["damage"] = [type(error).__name__, error.row, error.column]
x[40, 3] = x[2, 2] = 0
found["after damage"], found["notes"] = same(card, Q8_0), card.notes()

right = q8_0.encode
q8_0.encode = lambda rows, importance=None: right(rows) ^ 1
card = Card("cpu")
found["a wrong kernel"], found["its note"] = same(card, Q8_0), card.notes()

def broken(rows, importance=None):
    raise RuntimeError("Failed to find C compiler.\\nSet CC.")
q8_0.encode = broken
card = Card("cpu")
found["a broken kernel"], found["why"] = same(card, Q8_0) and same(card, Q5_0), card.notes()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result: dict[str, Any] = json.loads(answer.stdout)
    return result


@pytest.mark.parametrize("height", [1, 7, 50, 1000])
def test_the_size_of_pieces_never_shows(found: dict[str, Any], height: int) -> None:
    assert found[f"pieces of {height}"] is True


@pytest.mark.parametrize("source", ["F16", "BF16", "F64"])
def test_rows_of_any_float_are_encoded_as_the_cpu_does(found: dict[str, Any], source: str) -> None:
    assert found[f"rows of {source}"] is True


def test_importance_reaches_the_kernel(found: dict[str, Any]) -> None:
    assert found["importance"] is True


def test_no_rows_are_no_bytes(found: dict[str, Any]) -> None:
    assert found["no rows"] == [0, Q8_0.row_nbytes(96)]


def test_too_little_memory_halves_the_pieces_and_changes_no_byte(found: dict[str, Any]) -> None:
    assert found["little memory"] is True
    assert found["asked"] == [16, 8, 4, 2, 2]
    assert found["remembers"] == 2


def test_no_memory_for_one_row_is_one_clear_line(found: dict[str, Any]) -> None:
    assert found["no memory"] == (
        "cpu: no memory for one row of 96 columns to encode as Q8_0: free memory on the card, or say --device cpu"
    )


def test_damage_is_named_as_the_cpu_names_it_for_the_whole_slab(found: dict[str, Any]) -> None:
    assert found["damage"] == ["NonFiniteError", 40, 3]
    assert found["after damage"] is True


def test_the_notes_say_what_the_card_encoded(found: dict[str, Any]) -> None:
    assert found["notes"] == ["encoded on cpu: q8_0"]


def test_a_kernel_with_other_bytes_than_the_cpus_is_not_used(found: dict[str, Any]) -> None:
    assert found["a wrong kernel"] is True
    assert found["its note"] == ["q8_0: its kernel's bytes on cpu differ from the CPU's, so the CPU encoded it"]


def test_a_kernel_that_does_not_compile_is_not_used(found: dict[str, Any]) -> None:
    assert found["a broken kernel"] is True
    assert found["why"] == [
        "encoded on cpu: q5_0",
        "q8_0: its kernel does not run on cpu ('Failed to find C compiler.\\nSet CC.'), so the CPU encoded it",
    ]


def test_plain_floats_stay_on_the_cpu() -> None:
    assert has_kernel(Q4_K) and not has_kernel(F16)
