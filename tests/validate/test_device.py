from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from smelt.cli import cli
from smelt.errors import DeviceError, UsageError
from smelt.validate.device import DEVICES, device_name, open_device, to_device
from smelt.validate.protocols import protocol
from smelt.validate.report import Evaluation
from smelt.validate.setting import Setting
from smelt.validate.stream import Stream, run_layers, stored_weights


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_a_card_auto_is_the_cpu_and_cuda_is_refused(no_card: None) -> None:
    assert open_device("auto") == open_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="--device cuda: torch finds no CUDA device: say --device cpu") as caught:
        open_device("cuda")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_another_word_is_refused() -> None:
    with pytest.raises(UsageError, match=f"--device tpu: wanted one of {', '.join(DEVICES)}"):
        open_device("tpu")


def test_a_card_multiplies_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        device = open_device("auto")
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert device == torch.device("cuda", 3)
    assert device_name(device) == "cuda (card 3)"
    asked = Evaluation(protocol("gptq", 64), (), 0, 10)
    said = Setting(device).said(asked)
    assert said.device == "cuda (card 3)"
    assert said.notes == ("computed on cuda (card 3): the CPU's numbers differ from these by rounding",)
    assert Setting().said(asked) == asked


def test_weights_go_to_the_device_they_are_sent_to() -> None:
    placed = to_device({"a": torch.ones(2), "b": torch.zeros(1, 3)}, torch.device("meta"))
    assert {name: (value.device.type, tuple(value.shape)) for name, value in placed.items()} == {
        "a": ("meta", (2,)),
        "b": ("meta", (1, 3)),
    }


def test_for_a_device_the_next_layer_is_decoded_ahead_and_the_numbers_are_the_same(tiny: Any) -> None:
    """The CPU by its number takes the way of a card: every weight and state is sent, none stays where it was."""
    tokens = [np.random.default_rng(0).integers(0, 300, 48) for _ in range(2)]
    events: list[str] = []

    def source(names: Sequence[str]) -> Callable[[], dict[str, torch.Tensor]]:
        decode = stored_weights(tiny.model())(names)

        def decoded() -> dict[str, torch.Tensor]:
            events.append(f"decode {names[0].split('.')[2]}")
            return decode()

        return decoded

    def observe(_index: int, layer: int, bad: int | None) -> bool:
        events.append(f"ran {layer}")
        return bad is None

    plain, sent = Stream("m", tiny.model(), tokens), Stream("m", tiny.model(), tokens, source, device="cpu:0")
    assert plain.replay.on_cpu
    assert not sent.replay.on_cpu
    fetched = sent.fetch(0)
    assert events[-1] == "decode 0"
    assert fetched().keys() == plain.fetch(0)().keys()
    for stream in (plain, sent):
        run_layers([stream], observe)
    assert all(torch.equal(a, b) for a, b in zip(plain.states, sent.states, strict=True))


def test_the_command_says_in_a_line_that_there_is_no_card(tmp_path: Path, no_card: None) -> None:
    from meta_checkpoints import write_meta
    from smelt.errors import SmeltError

    write_meta(tmp_path / "meta", dim=32, n_layers=1, n_heads=2)
    text = tmp_path / "text"
    text.write_text("some text of no importance\n" * 20)
    words = ["perplexity", str(tmp_path / "meta"), "--text", str(text), "--context-length", "64", "--ctx", "32"]
    found = CliRunner().invoke(cli, [*words, "--device", "cuda"])
    assert isinstance(found.exception, SmeltError)
    assert found.exception.exit_code == 4
