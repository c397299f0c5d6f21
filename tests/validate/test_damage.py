"""Damage as broken converters do it, in files of the trained model: each kind fails `validate` by its name.

The table under "What the gates catch" in docs/validation.md is what `told` gives, cut to its first sentence.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from smelt.api import convert, quantize, validate
from smelt.convert.options import OpenOptions
from smelt.validate.options import ValidateOptions
from smelt.validate.report import CandidateResult

gguf = pytest.importorskip("gguf", reason="it writes the wrong begin token")

State = dict[str, torch.Tensor]
LAYER = "model.layers.1."
DOWN = LAYER + "mlp.down_proj.weight"
OPTIONS = ValidateOptions(n_ctx=128, chunks=40, resamples=1000, threads=1, generate=0)


def in_pairs(state: State) -> None:
    """Rows of each head as Meta has them: the converter forgot to bring pairs into halves."""
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            state[name] = weight.unflatten(0, (-1, 2, 16)).transpose(1, 2).flatten(0, 2).contiguous()


def permuted_twice(state: State) -> None:
    """The converter took a file in halves for one in pairs."""
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            state[name] = weight.unflatten(0, (-1, 16, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def zeroed(state: State) -> None:
    state[DOWN].zero_()


def one_nan(state: State) -> None:
    state[DOWN][3, 5] = torch.nan


def layers_swapped(state: State) -> None:
    for name in [name for name in state if name.startswith(LAYER)]:
        other = name.replace(".1.", ".2.")
        state[name], state[other] = state[other], state[name]


def rows_shifted(state: State) -> None:
    """A token too many in front: every word has the one before it."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name].roll(1, 0)


DAMAGED: dict[str, Callable[[State], None]] = {
    "q and k left in Meta's pairs of rows": in_pairs,
    "q and k permuted twice": permuted_twice,
    "one tensor of zeros": zeroed,
    "one NaN": one_nan,
    "two layers swapped": layers_swapped,
    "vocabulary shifted by one": rows_shifted,
}


def said(found: CandidateResult) -> tuple[str, str]:
    """(gate, what it says first) of the last failed gate that judges facts, not drift."""
    facts = ("finite", "tensors", "tokenizer", "special tokens", "config")
    gate = [gate for gate in found.gates if not gate.passed and gate.name in facts][-1]
    return gate.name, gate.reason.split(", model.")[0].split(", lm_head")[0]


def finite(found: CandidateResult) -> tuple[str, str]:
    """What the gate of that name says."""
    gate = next(gate for gate in found.gates if gate.name == "finite" and not gate.passed)
    return gate.name, gate.reason


@pytest.fixture(scope="module")
def hugging_face(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honest") / "hf"
    convert(tiny_llama, folder, options=OpenOptions(context_length=512))
    return folder


def damaged(honest: Path, folder: Path, damage: Callable[[State], None]) -> Path:
    shutil.copytree(honest, folder)
    state = load_file(honest / "model.safetensors")
    damage(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def another_base(honest: Path, folder: Path) -> Path:
    shutil.copytree(honest, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 500000.0}))
    return folder


def wrong_begin(honest: Path, file: Path) -> Path:
    convert(honest, file)
    field = gguf.GGUFReader(file, "r+").get_field("tokenizer.ggml.bos_token_id")
    field.parts[field.data[0]][0] = 5
    return file


def overflowing(honest: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(the same model in float32 with one product scaled up and down again, what fp16 makes of it, the scales lost)."""
    state = {name: weight.float() for name, weight in load_file(honest / "model.safetensors").items()}
    state[LAYER + "mlp.up_proj.weight"][7] *= 1e7
    state[DOWN][:, 7] *= 1e-7
    lost = {key: weight * 1e20 if key.startswith(LAYER + "mlp.") else weight for key, weight in state.items()}
    half = {key: weight.half() for key, weight in state.items()}
    for name, written in (("f32", state), ("f16", half), ("lost", lost)):
        shutil.copytree(honest, folder / name)
        save_file(written, folder / name / "model.safetensors", {"format": "pt"})
    return folder / "f32", folder / "f16", folder / "lost"


@pytest.fixture(scope="module")
def table(hugging_face: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Damage -> what `validate` said of it."""
    root = tmp_path_factory.mktemp("damaged")
    files = {name: damaged(hugging_face, root / str(i), damage) for i, (name, damage) in enumerate(DAMAGED.items())}
    files["another rotary base"] = another_base(hugging_face, root / "base")
    files["another begin token"] = wrong_begin(hugging_face, root / "begin.gguf")
    text = (tiny_llama / "heldout.txt").read_text(encoding="utf-8")
    few = ValidateOptions(n_ctx=128, chunks=2, resamples=100, threads=1, generate=0)
    report = validate(hugging_face, list(files.values()), text, few)
    found = {name: said(candidate) for name, candidate in zip(files, report.candidates, strict=True)}
    wide, narrow, lost = overflowing(hugging_face, root / "wide")
    beyond, unscaled = validate(wide, [narrow, lost], text, few).candidates
    return {**found, "weights beyond fp16": said(beyond), "the scales of a layer lost": finite(unscaled)}


NAMED = {
    "q and k left in Meta's pairs of rows": ("tensors", "_proj.weight", "other rotary layout: pairs, wanted halves"),
    "q and k permuted twice": ("tensors", "_proj.weight", "from pairs to halves once too often"),
    "one tensor of zeros": ("tensors", DOWN, "all zeros"),
    "one NaN": ("finite", DOWN, "1 NaN of"),
    "two layers swapped": ("tensors", "model.layers.", "it is the reference's model.layers."),
    "vocabulary shifted by one": ("tensors", "model.embed_tokens.weight", "shifted by one row"),
    "another rotary base": ("config", "rope_theta", "500000.0"),
    "another begin token": ("special tokens", "bos_id is 5", "the reference's is 1"),
    "weights beyond fp16": ("finite", LAYER + "mlp.up_proj.weight", "infinite of"),
    "the scales of a layer lost": ("finite", "layer 1 of 4", "NaN or infinity"),
}


@pytest.mark.parametrize("damage", NAMED)
def test_planted_damage_fails_by_its_name(table: dict[str, tuple[str, str]], damage: str) -> None:
    gate, *words = NAMED[damage]
    assert table[damage][0] == gate
    for word in words:
        assert word in table[damage][1]


def test_the_page_says_what_the_gates_said(table: dict[str, tuple[str, str]]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "validation.md").read_text(encoding="utf-8")
    section = page.split("## What the gates catch")[1].split("\n## ")[0]
    stated = [
        tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in re.findall(r"^\|.*\|$", section, re.M)
    ][2:]
    wanted = [(damage, f"`{gate}`", reason) for damage, (gate, reason) in table.items()]
    print("\n".join(f"| {' | '.join(row)} |" for row in wanted))
    assert sorted(stated) == sorted(wanted), "\n" + "\n".join(f"| {' | '.join(row)} |" for row in wanted)


def test_honest_files_pass(hugging_face: Path, tiny_llama: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.gguf" for name in ("same", "q8_0", "q6_k")]
    convert(hugging_face, files[0])
    for file in files[1:]:
        quantize(hugging_face, file, file.stem)
    text = (tiny_llama / "heldout.txt").read_text(encoding="utf-8")
    report = validate(hugging_face, files, text, OPTIONS)
    for found in report.candidates:
        assert [gate.reason for gate in found.gates if not gate.passed] == [], found.path
    same = report.candidates[0]
    assert same.drift is not None
    assert same.drift.kld.max == 0.0
