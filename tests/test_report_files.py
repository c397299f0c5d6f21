"""`smelt validate --html --markdown`: what is written, what is refused before any work, and the command that stands in it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from meta_checkpoints import write_meta
from smelt.cli import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer, and token ids to read."""
    made = tmp_path_factory.mktemp("reports")
    write_meta(made / "ref", dim=32, n_layers=1, n_heads=2)
    (made / "ids.json").write_text(json.dumps([1 + k * 7 % 90 for k in range(130)]))
    return made


def validate(folder: Path, *words: object) -> Result:
    """The reference against itself."""
    model, ids = str(folder / "ref"), str(folder / "ids.json")
    fixed = ["validate", model, model, "--token-ids", f"odd name={ids}", "--ctx", "32", "--context-length", "64"]
    return CliRunner().invoke(cli, [*fixed, "--generate", "0", *map(str, words)])


def test_both_reports_are_written_with_the_command_that_made_them(folder: Path, tmp_path: Path) -> None:
    page, card = tmp_path / "r.html", tmp_path / "r.md"
    found = validate(folder, "--html", page, "--markdown", card, "--max-ppl-drift", "1.5%", "-q", "--threads", "1")
    assert found.exit_code == 0, found.output
    assert page.read_text().startswith("<!doctype html>")
    line = next(line for line in card.read_text().splitlines() if line.startswith("    smelt validate "))
    words = shlex.split(line)
    assert words[:2] == ["smelt", "validate"]
    assert set(words) >= {"--token-ids", f"odd name={folder / 'ids.json'}", "--ctx", "32", "--max-ppl-drift", "0.015"}
    assert not set(words) & {"--html", "--markdown", "-q", "--quiet", "--threads", "--protocol", "--force"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.md"]


@pytest.mark.parametrize("option", ["--html", "--markdown"])
def test_a_report_that_exists_is_kept_without_force(folder: Path, tmp_path: Path, option: str) -> None:
    (tmp_path / "r").write_text("mine")
    found = validate(folder, option, tmp_path / "r")
    assert "exists already: --force replaces it" in str(found.exception)
    assert (tmp_path / "r").read_text() == "mine"


def test_force_replaces_a_report(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r").write_text("mine")
    assert validate(folder, "--markdown", tmp_path / "r", "--force").exit_code == 0
    assert (tmp_path / "r").read_text().startswith("## Validation: pass")


def test_a_report_never_replaces_an_input_or_another_output(folder: Path, tmp_path: Path) -> None:
    for words in (
        ["--html", folder / "ids.json", "--force"],
        ["--html", folder / "ref" / "params.json", "--force"],
        ["--html", tmp_path / "r", "--markdown", tmp_path / "r"],
        ["--html", tmp_path / "no" / "r"],
    ):
        assert validate(folder, *words).exit_code != 0
    assert json.loads((folder / "ids.json").read_text())
    assert list(tmp_path.iterdir()) == []
