from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from smelt.errors import ModelError, StorageError
from smelt.validate import states
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.run import measure_perplexity, validate
from smelt.validate.states import FileStates, Room, available_memory, default_max_ram, in_memory, shapes
from smelt.validate.texts import Text
from torch import Tensor

OPTIONS = ValidateOptions(n_ctx=64, resamples=50, slice_rows=77, max_ram=1 << 40, generate=0)


def windows(*lengths: int) -> list[Tensor]:
    """Every bit pattern may occur, NaN and -0.0 among them."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(-(2**31), 2**31, (1, n, 8), generator=generator).int().view(torch.float32) for n in lengths]


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("max_ram", [0, 1 << 30])
def test_states_come_back_bit_for_bit_wherever_they_live(tmp_path: Path, max_ram: int) -> None:
    given = windows(5, 7, 1)
    with Room(max_ram, tmp_path) as room:
        kept = room.keep(iter(given), 13)
        assert isinstance(kept, FileStates) == (max_ram == 0)
        assert len(kept) == 3
        assert all(same_bits(a, b) for a, b in zip(kept, given, strict=True))
        assert shapes(kept) == [(1, 5, 8), (1, 7, 8), (1, 1, 8)]
        (other,) = windows(7)
        kept[1] = other.flip(0)
        assert same_bits(kept[1], other)
        assert same_bits(kept[0], given[0])
        assert same_bits(kept[-1], given[2])
        assert [state.shape[1] for state in kept[1:]] == [7, 1]


def test_a_slice_reads_what_is_written_later(tmp_path: Path) -> None:
    with Room(0, tmp_path) as room:
        kept = room.keep(windows(2, 2), 4)
        last = kept[1:]
        kept[1] = torch.ones(1, 2, 8)
        assert torch.equal(last[0], torch.ones(1, 2, 8))


def test_memory_is_filled_first_and_then_files_are(tmp_path: Path) -> None:
    with Room(4 * 8 * 20, tmp_path) as room:
        found = [isinstance(room.keep(windows(n), n), FileStates) for n in (15, 10, 5, 1)]
    assert found == [False, True, False, True]


def test_a_file_has_no_name_and_is_gone_after_an_error(tmp_path: Path) -> None:
    kept: Any = None
    with pytest.raises(KeyboardInterrupt), Room(0, tmp_path) as room:
        kept = room.keep(windows(4), 4)
        assert list(tmp_path.iterdir()) == []
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="closed"):
        kept[0]


def test_too_little_space_is_an_error_before_any_work(tmp_path: Path) -> None:
    with Room(0, tmp_path) as room, pytest.raises(StorageError, match=r"needs .* bytes, .* are free"):
        room.keep(iter(windows(1)), 1 << 50)


def test_states_of_another_shape_are_refused(tmp_path: Path) -> None:
    with Room(0, tmp_path) as room:
        kept = room.keep(windows(4), 4)
        with pytest.raises(ModelError, match=r"shape \[1, 3, 8\], wanted \[1, 4, 8\]"):
            kept[0] = torch.zeros(1, 3, 8)


def test_no_windows_are_an_empty_list(tmp_path: Path) -> None:
    with Room(0, tmp_path) as room:
        assert len(room.keep([], 0)) == 0
    assert list(in_memory([], 0)) == []


def test_the_default_is_half_of_what_is_free_within_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal:  900 kB\nMemAvailable:    600 kB\n")
    monkeypatch.setattr(states, "MEMORY_FILE", memory)
    monkeypatch.setattr(states, "CGROUP", tmp_path)
    assert default_max_ram() == 300 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert available_memory() == 100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() == 600 * 1024
    monkeypatch.setattr(states, "MEMORY_FILE", tmp_path / "absent")
    assert available_memory() > 1 << 20


@pytest.mark.parametrize("max_ram", [0, 100_000])
def test_a_validation_on_disk_gives_the_bytes_of_one_in_memory(tiny: Any, text: str, max_ram: int) -> None:
    def document(options: ValidateOptions) -> str:
        subjects = [Subject("noisy", tiny.noisy(0.1).model()), Subject("same", tiny.model())]
        found = validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], options).document()
        return json.dumps(found, allow_nan=False)

    options = replace(OPTIONS, generate=0, chunks=3)
    assert document(replace(options, max_ram=max_ram)) == document(options)


def test_perplexity_on_disk_is_that_in_memory(tiny: Any, text: str) -> None:
    subject = Subject("m", tiny.model())
    found = [
        measure_perplexity(subject, Text("text", text), replace(OPTIONS, protocol="strided", max_ram=max_ram))
        for max_ram in (0, 1 << 30)
    ]
    assert found[0] == found[1]
