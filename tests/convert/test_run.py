"""The run: the same bytes whatever the threads and slabs, damage named, nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from meta_checkpoints import write_meta
from safetensors.torch import load_file, save_file
from smelt.api import convert, convert_plan, quantized_plan
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run
from smelt.errors import NonFiniteError, ScaleOverflowError, UsageError, ValueAtError
from smelt.formats.gguf import open_gguf
from smelt.quantize.choose import ChooseOptions

from .small_models import write

OPTIONS = OpenOptions(context_length=128)


@pytest.mark.parametrize("scheme", ["q4_0", "q8_0"])
def test_threads_and_slabs_never_show_in_the_output(tmp_path: Path, scheme: str) -> None:
    write_meta(tmp_path / "meta", dim=64, n_shards=2)
    outputs = []
    for threads, slab in ((1, 1 << 20), (2, 64), (7, 1000), (3, 1)):
        target = tmp_path / f"{threads}.gguf"
        plan = quantized_plan(
            tmp_path / "meta", target, scheme, options=OPTIONS, choices=None if scheme == "q8_0" else ALLOW
        )
        run(plan, RunOptions(threads, slab=slab))
        outputs.append(target.read_bytes())
    assert all(output == outputs[0] for output in outputs)


def test_a_dry_plan_knows_the_size_to_the_byte(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    for target in (tmp_path / "model.gguf", tmp_path / "hf"):
        plan = convert_plan(tmp_path / "meta", target, options=OPTIONS)
        result = run(plan, RunOptions(2))
        written = [path for path in result.files if not path.name.endswith("smelt.json")]
        assert sum(path.stat().st_size for path in written) == plan.nbytes == result.nbytes


@pytest.mark.parametrize(("value", "error"), [(float("nan"), NonFiniteError), (float("-inf"), NonFiniteError)])
def test_quantizing_damage_names_tensor_row_and_column(tmp_path: Path, value: float, error: type[Exception]) -> None:
    write_meta(tmp_path / "meta")
    damage(tmp_path / "meta", value)
    plan = quantized_plan(tmp_path / "meta", tmp_path / "model.gguf", "q8_0", options=OPTIONS)
    with pytest.raises(error, match=r"blk\.1\.ffn_gate\.weight.*row 3, column 5"):
        run(plan, RunOptions(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_copying_damage_keeps_it_and_says_so(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    damage(tmp_path / "meta", float("nan"))
    result = convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    assert [note for note in result.notes if "NaN" in note] == [
        "model.layers.1.mlp.gate_proj.weight: 1 values are NaN or infinite, kept as they are"
    ]


def test_a_value_beyond_fp16_is_an_error_not_an_infinity(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dtype=torch.bfloat16)
    damage(tmp_path / "meta", 1e30)
    with pytest.raises(ScaleOverflowError, match=r"gate_proj.*row 3, column 5.*bf16"):
        convert(tmp_path / "meta", tmp_path / "hf", dtype="f16", options=OPTIONS)
    assert not (tmp_path / "hf").exists()


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    plan = convert_plan(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)

    def interrupt(done: int, total: int, label: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, RunOptions(2), interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


def test_rejects_no_threads(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    with pytest.raises(UsageError, match="--threads 0"):
        run(convert_plan(tmp_path / "meta", tmp_path / "hf", options=OPTIONS), RunOptions(0))


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    seen: list[tuple[int, int]] = []
    plan = convert_plan(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    run(plan, RunOptions(2), lambda done, total, _label: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == sum(step.tensor.nbytes for step in plan.steps)


def damage(folder: Path, value: float) -> None:
    path = folder / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    state["layers.1.feed_forward.w1.weight"][3, 5] = value
    torch.save(state, path)


ALLOW = ChooseOptions(allow_fallback=True)


@pytest.mark.parametrize("scheme", ["q4_0", "q4_1", "q8_0", "q4_k", "iq4_xs"])
def test_a_scale_too_large_is_told_by_the_value_that_makes_it_so(tmp_path: Path, scheme: str) -> None:
    write_meta(tmp_path / "meta", dim=256, dtype=torch.bfloat16)
    path = tmp_path / "meta" / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    state["layers.1.feed_forward.w1.weight"][300, 77] = -1e30
    torch.save(state, path)
    choices = ChooseOptions(pure=True, allow_fallback=True)
    plan = quantized_plan(tmp_path / "meta", tmp_path / "m.gguf", scheme, options=OPTIONS, choices=choices)
    for slab in (1 << 20, 256 * 7):
        with pytest.raises(
            ScaleOverflowError, match=r"blk\.1\.ffn_gate\.weight: the value at row 300, column 77 is too large"
        ):
            run(plan, RunOptions(2, slab=slab))


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_damage_in_an_expert_is_told_by_its_row_in_the_stored_tensor(tmp_path: Path, value: float) -> None:
    source = write(tmp_path / "hf", "mixtral", torch.bfloat16)
    path = source / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    rows = state[name].shape[0]
    state[name][5, 9] = value
    save_file(state, path, metadata={"format": "pt"})
    plan = quantized_plan(source, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(
        ValueAtError, match=rf"blk\.1\.ffn_gate_exps\.weight: the value at row {2 * rows + 5}, column 9 is"
    ):
        run(plan, RunOptions(2, slab=64))


def test_rounding_a_router_is_said_or_does_not_happen(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", "mixtral", torch.float32)
    rounded = convert(source, tmp_path / "f16", dtype="f16")
    assert any(
        re.fullmatch(r"among them \d+ values of 2 routers, .*--dtype source or f32 keeps them", n)
        for n in rounded.notes
    )
    kept = convert(source, tmp_path / "m.gguf", dtype="f16")
    routers = [t for name, t in open_gguf(tmp_path / "m.gguf").tensors.items() if "ffn_gate_inp" in name]
    assert {tensor.dtype.name for tensor in routers} == {"F32"}
    assert not any("router" in note for note in kept.notes) and any("the dtype rounded" in note for note in kept.notes)
    assert not any("router" in note for note in convert(source, tmp_path / "f32", dtype="f32").notes)
