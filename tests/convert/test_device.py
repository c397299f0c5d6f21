"""Which device encodes a step: a card where there is one and the type has a kernel, the CPU for all else, the same bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from meta_checkpoints import write_meta
from smelt.api import quantized_plan
from smelt.convert import device as device_module
from smelt.convert import run as run_module
from smelt.convert.device import Device, open_device
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run
from smelt.errors import DeviceError, UsageError
from smelt.kernels.card import driver_present
from smelt.kernels.scheme import decode, kernel
from smelt.quantize.choose import ChooseOptions

OPTIONS = OpenOptions(context_length=128)


class PretendedCard:
    """A card whose kernels are the CPU's."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, str]] = set()

    def encode(self, dtype: Any, source: Any, raw: Any, importance: Any) -> Any:
        self.seen.add((source.name, dtype.name))
        return kernel(dtype).encode(decode(source, raw), importance)

    def notes(self) -> list[str]:
        return ["encoded on a pretended card"]


def test_the_device_never_shows_in_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_meta(tmp_path / "meta", dim=64)
    choices = ChooseOptions(pure=True, tensor_types=(("attn_v", "f32"),))
    plan = quantized_plan(tmp_path / "meta", tmp_path / "m.gguf", "q8_0", options=OPTIONS, choices=choices)
    run(plan, RunOptions(2, device="cpu"))
    wanted = (tmp_path / "m.gguf").read_bytes()
    card: Any = PretendedCard()
    monkeypatch.setattr(run_module, "open_device", lambda name, steps: Device(card, ("iq1_m",)))
    result = run(plan, RunOptions(2, force=True))
    assert (tmp_path / "m.gguf").read_bytes() == wanted
    assert {target for _, target in card.seen} == {"Q8_0"}
    assert result.notes[-2:] == (
        "encoded on a pretended card",
        "encoded on the CPU, for want of a kernel for the card: iq1_m",
    )


def test_without_a_driver_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "driver_present", lambda: False)
    assert open_device("auto", []).card is None
    with pytest.raises(DeviceError, match="--device cuda: this system has no NVIDIA driver; say --device cpu"):
        open_device("cuda", [])


def test_auto_asks_for_no_torch_where_no_step_could_use_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "driver_present", lambda: True)
    monkeypatch.setattr(device_module, "import_module", lambda *names: pytest.fail("imported the pipeline"))
    assert open_device("auto", []).card is None


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="--device tpu: wanted one of auto, cpu, cuda"):
        open_device("tpu", [])


@pytest.mark.skipif(driver_present(), reason="there is a card")
def test_the_command_line_refuses_a_card_that_is_not_there_in_one_line(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dim=64)
    command = [sys.executable, "-P", "-m", "smelt", "quantize", str(tmp_path / "meta"), str(tmp_path / "m.gguf")]
    options = ["--scheme", "q8_0", "--context-length", "128", "--device", "cuda"]
    found = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert found.returncode == 4
    assert found.stderr.splitlines() == [
        "smelt: error: --device cuda: this system has no NVIDIA driver; say --device cpu, or auto"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta"]


@pytest.mark.skipif(driver_present(), reason="there is a card")
def test_a_dry_run_refuses_a_card_that_is_not_there(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dim=64)
    command = [sys.executable, "-P", "-m", "smelt", "convert", str(tmp_path / "meta"), str(tmp_path / "m.gguf")]
    options = ["--context-length", "128", "--dry-run", "--device"]
    refused = subprocess.run([*command, *options, "cuda"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (4, 1) and "no NVIDIA driver" in refused.stderr
    assert subprocess.run([*command, *options, "auto"], capture_output=True, check=False).returncode == 0
