from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from meta_checkpoints import write_meta
from smelt.cli import cli
from smelt.errors import FormatError, InputError, UsageError
from smelt.validate import journal as journal_module
from smelt.validate import setting
from smelt.validate.journal import NAME, Journal, discard
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.run import measure_perplexity, validate
from smelt.validate.texts import Text

ZEROED = "model.layers.1.mlp.down_proj.weight"
OPTIONS = ValidateOptions(n_ctx=64, resamples=50, slice_rows=77, generate=0, save_every=0.0, chunks=3)


class Stopped(BaseException):
    """As a kill would, where it is raised."""


@pytest.fixture
def subjects(tiny: Any) -> list[Subject]:
    """The reference, a noisy candidate, one that overflows in its second layer."""
    damaged = tiny.copy()
    damaged.weights[ZEROED] *= np.float32(1e38)
    damaged.weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e18)
    models = (tiny.model(), tiny.noisy(0.1).model(), damaged.model())
    return [Subject(name, model) for name, model in zip(("ref", "noisy", "damaged"), models, strict=True)]


def document(subjects: list[Subject], text: str, options: ValidateOptions) -> str:
    reference, *candidates = subjects
    return json.dumps(validate(reference, candidates, [Text("text", text)], options).document(), allow_nan=False)


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """From now on every `after`-th saving is the last thing a run does; the list counts the stops."""
    stops: list[int] = []
    written = 0
    save = Journal.save

    def save_and_stop(self: Journal, steps: int, *given: Any, **named: Any) -> None:
        nonlocal written
        before = self._saved
        save(self, steps, *given, **named)
        written += self._saved is not before
        if self._saved is not before and written % after == 0:
            stops.append(steps)
            raise Stopped

    monkeypatch.setattr(Journal, "save", save_and_stop)
    return stops


@pytest.mark.parametrize(("attribute", "max_ram"), [(False, 0), (True, 1 << 30)])
def test_a_run_that_is_stopped_again_and_again_gives_the_same_bytes(
    subjects: list[Subject], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attribute: bool, max_ram: int
) -> None:
    options = replace(OPTIONS, attribute=attribute)
    wanted = document(subjects, text, options)
    stops = stopping(monkeypatch, 4)
    resumed = replace(options, resume=tmp_path / "journal", max_ram=max_ram)
    found = None
    while found is None:
        try:
            found = document(subjects, text, resumed)
        except Stopped:
            assert len(stops) < 12
    assert found == wanted
    assert len(stops) >= 2
    assert stops == sorted(set(stops))


def test_what_is_done_is_not_done_again(
    subjects: list[Subject], tiny: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, resume=tmp_path / "journal")
    stops = stopping(monkeypatch, 8)
    with pytest.raises(Stopped):
        document(subjects, text, options)
    monkeypatch.undo()
    assert stops == [8]  # two layers of the reference, two candidates and the noise floor
    tiny.reads.clear()
    document(subjects, text, options)
    layers = {name.split(".")[2] for name, _, _ in tiny.reads if name.startswith("model.layers")}
    assert layers == {"2"}


def test_a_finished_journal_gives_the_report_without_a_layer(
    subjects: list[Subject], tiny: Any, text: str, tmp_path: Path
) -> None:
    options = replace(OPTIONS, resume=tmp_path / "journal")
    wanted = document(subjects, text, options)
    tiny.reads.clear()
    assert document(subjects, text, options) == wanted
    assert not [name for name, _, _ in tiny.reads if name.startswith("model.layers")]


def test_perplexity_goes_on_too(tiny: Any, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, asked = Subject("m", tiny.model()), Text("text", text)
    wanted = measure_perplexity(subject, asked, OPTIONS)
    stopping(monkeypatch, 2)
    options = replace(OPTIONS, resume=tmp_path / "journal")
    with pytest.raises(Stopped):
        measure_perplexity(subject, asked, options)
    monkeypatch.undo()
    assert measure_perplexity(subject, asked, options) == wanted


def begin(tmp_path: Path, subjects: list[Subject], text: str, monkeypatch: pytest.MonkeyPatch) -> ValidateOptions:
    """A journal that was left in the middle."""
    options = replace(OPTIONS, resume=tmp_path / "journal")
    stopping(monkeypatch, 4)
    with pytest.raises(Stopped):
        document(subjects, text, options)
    monkeypatch.undo()
    return options


def test_a_journal_of_another_question_is_refused_by_what_differs(
    subjects: list[Subject],
    tiny: Any,
    make: Callable[..., Any],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = begin(tmp_path, subjects, text, monkeypatch)
    with pytest.raises(UsageError, match=r"journal of another run, by its option seed: remove it or name another"):
        document(subjects, text, replace(options, seed=2))
    with pytest.raises(UsageError, match="by its texts:"):
        document(subjects, text + "more of it" * 20, options)
    with pytest.raises(UsageError, match="by its number of models, candidate 2:"):
        document(subjects[:2], text, options)
    other = Subject("noisy", make(n_kv_heads=2).model())
    with pytest.raises(UsageError, match="by its candidate 1:"):
        document([subjects[0], other, subjects[2]], text, options)
    with pytest.raises(UsageError, match="by its command,"):
        measure_perplexity(subjects[0], Text("text", text), options)
    monkeypatch.setattr(setting, "version", lambda name: "0.0")
    with pytest.raises(UsageError, match="by its version of smelt, version of torch"):
        document(subjects, text, options)


def test_a_file_that_was_touched_is_another_input(tiny: Any, text: str, tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    subject = Subject("m", replace(tiny.model(), files=(file,)))
    options = replace(OPTIONS, resume=tmp_path / "journal")
    measure_perplexity(subject, Text("text", text), options)
    measure_perplexity(subject, Text("text", text), options)
    os.utime(file, ns=(1, 1))
    with pytest.raises(UsageError, match="by its model 0:"):
        measure_perplexity(subject, Text("text", text), options)


def test_memory_and_savings_may_differ_between_two_runs(
    subjects: list[Subject], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = begin(tmp_path, subjects, text, monkeypatch)
    found = document(subjects, text, replace(options, max_ram=0, save_every=100.0))
    assert found == document(subjects, text, OPTIONS)


@pytest.mark.parametrize("damage", ["flip", "cut", "absent"])
def test_damaged_states_are_an_error_that_names_the_file(
    subjects: list[Subject], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    options = begin(tmp_path, subjects, text, monkeypatch)
    live = json.loads((tmp_path / "journal" / NAME).read_text())["states"]["file"]
    path = tmp_path / "journal" / live
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(InputError, match=live):
        document(subjects, text, options)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"format": 1, "key": [], "records": {}, "states": null}',
        b'{"format": "1", "key": {}, "records": {}}',
    ],
)
def test_a_journal_that_is_none_is_an_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(FormatError, match="is no journal") as caught:
        Journal(tmp_path, {}, 0.0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"weights": 7}, {"weights": [{"tensors": []}]}, {"layers": {"drifts": 1}}, {"layers": None}]
)
def test_records_of_another_kind_are_an_error(
    subjects: list[Subject], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    options = begin(tmp_path, subjects, text, monkeypatch)
    path = tmp_path / "journal" / NAME
    content = json.loads(path.read_text())
    content["records"].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="is damaged"):
        document(subjects, text, options)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds 'thesis\.tex' and no journal: name a new folder"):
        Journal(tmp_path, {}, 0.0)
    discard(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal", {}, 0.0), pytest.raises(UsageError, match="another run is using it"):
        Journal(tmp_path / "journal", {}, 0.0)
    with Journal(tmp_path / "journal", {}, 0.0):
        pass


def test_discard_removes_all_that_a_journal_leaves(
    subjects: list[Subject], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = begin(tmp_path, subjects, text, monkeypatch)
    assert options.resume is not None
    assert sorted(path.name for path in options.resume.iterdir()) == ["journal.json", "states-0.bin", "states-1.bin"]
    (options.resume / ".states-0.bin.smelt.part").write_bytes(b"left by a kill")
    discard(options.resume)
    assert not options.resume.exists()


def test_savings_take_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: clock)
    written: list[float] = []
    with Journal(tmp_path / "journal", {}, 30.0) as journal:

        def slow(*_: Any) -> None:
            nonlocal clock
            written.append(clock)
            clock += 4.0  # seconds that a saving takes

        monkeypatch.setattr(journal, "_write", slow)
        for step in range(60):
            clock += 10.0
            journal.save(step, [], dict)
        journal.save(60, [], dict, last=True)
    assert written[0] == 30.0
    gaps = [b - a - 4.0 for a, b in itertools.pairwise(written[:-1])]
    assert all(80.0 <= gap < 90.0 for gap in gaps)
    assert written[-1] == clock - 4.0


def validate_to(path: Path, subjects: list[Subject], text: str, options: ValidateOptions) -> None:
    path.write_text(document(subjects, text, options))


@pytest.mark.long
def test_killed_at_five_random_moments_it_goes_on_to_the_same_bytes(
    subjects: list[Subject], text: str, tmp_path: Path
) -> None:
    processes = multiprocessing.get_context("fork")
    options = replace(OPTIONS, attribute=True)

    def start(folder: str, out: str) -> Any:
        resumed = replace(options, resume=tmp_path / folder)
        process = processes.Process(target=validate_to, args=(tmp_path / out, subjects, text, resumed))
        process.start()
        return process

    wanted = document(subjects, text, options)
    started = time.monotonic()
    start("whole", "whole.json").join()
    whole = time.monotonic() - started
    assert (tmp_path / "whole.json").read_text() == wanted
    moments = random.Random(20)  # the system's scheduler is the other half of the chance
    for trial in range(5):
        process = start(f"journal{trial}", "none.json")
        process.join(moments.uniform(0.1, 0.9) * whole)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        again = start(f"journal{trial}", f"{trial}.json")
        again.join()
        assert again.exitcode == 0
        assert (tmp_path / f"{trial}.json").read_text() == wanted


def test_the_command_goes_on_and_removes_the_journal_when_its_report_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_meta(tmp_path / "meta", dim=32, n_layers=2, n_heads=2)
    (tmp_path / "text").write_text("some text of no importance\n" * 20)
    model, folder = str(tmp_path / "meta"), tmp_path / "journal"
    words = ["validate", model, model, "--text", str(tmp_path / "text"), "--context-length", "64", "--ctx", "32"]
    words += ["--chunks", "2", "--json", "--skip-noise-floor"]
    wanted = CliRunner().invoke(cli, words)
    assert wanted.exit_code == 0
    stopping(monkeypatch, 1)
    with pytest.raises(Stopped):
        CliRunner().invoke(cli, [*words, "--resume", str(folder), "--max-ram", "1KB"])
    assert (folder / NAME).exists()
    monkeypatch.undo()
    found = CliRunner().invoke(cli, [*words, "--resume", str(folder)])
    assert found.exit_code == 0
    documents = [json.loads(each.stdout) for each in (found, wanted)]
    assert documents[0] == documents[1]
    assert not folder.exists()
