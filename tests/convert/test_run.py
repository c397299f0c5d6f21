"""The run: the same bytes whatever the threads and slabs, damage named, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import convert, convert_plan, quantized_plan
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run
from smelt.errors import NonFiniteError, ScaleOverflowError, UsageError

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


def _allow() -> object:
    from smelt.quantize.choose import ChooseOptions

    return ChooseOptions(allow_fallback=True)


ALLOW = _allow()
