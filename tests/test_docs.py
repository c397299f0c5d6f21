"""The documents say what the code does: the table of number formats, and every command and option by name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import click
import pytest
from smelt.cli import cli
from smelt.dtypes import DTYPES
from smelt.errors import UsageError
from smelt.formats.gguf_types import TENSOR_IDS
from smelt.kernels.scheme import can_decode, can_encode
from smelt.quantize.choose import find_recipe
from smelt.quantize.recipes import NEED_IMPORTANCE, RECIPES, RULES, Place, Recipe, by_rule, needs_importance

ROOT = Path(__file__).parents[1]
FORMATS = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND = re.compile(r"(?:^ {4}|`|; do |\| )smelt ([a-z]+)([^`\n#]*)", re.MULTILINE)


def kernel_cases() -> ModuleType:
    """Which types the kernels' tests hold to ggml's bytes, and which to its error."""
    spec = importlib.util.spec_from_file_location("cases_of_docs", ROOT / "tests" / "kernels" / "kernel_cases.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(name: str) -> str:
    """How smelt makes a type, in the words of the table."""
    cases, dtype = kernel_cases(), DTYPES[name]
    if not can_encode(dtype):
        return ""
    if not dtype.is_block:
        return "rounded to nearest"
    if name.lower() not in cases.EXACT:
        assert (name.lower(), True) in cases.SEARCHED, "neither held to ggml's bytes nor to its error"
        return "searched"
    with_importance = (name.lower(), True) in cases.SEARCHED
    return "ggml's bytes; with importance searched" if with_importance else "ggml's bytes"


def type_row(name: str) -> str:
    """The line of docs/formats.md for one type."""
    dtype = DTYPES[name]
    words = [name, f"{dtype.block}", f"{dtype.nbytes}", f"{dtype.bits_per_weight:.6g}"]
    words += ["yes" if able else "no" for able in (can_decode(dtype), can_encode(dtype), name in NEED_IMPORTANCE)]
    return f"| {' | '.join((*words, made(name)))}".rstrip() + " |"


def can_make(recipe: Recipe) -> bool:
    """Whether --scheme takes the recipe."""
    try:
        return find_recipe(recipe.name) == recipe
    except UsageError:
        return False


def lacks_without_importance(recipe: Recipe) -> bool:
    """Whether a dense model's matrices get a type that needs importance."""
    place = Place(0, 32, 1, 0, imatrix=False)
    return any(needs_importance(recipe, role, by_rule(recipe, role, place)) for role in RULES)


def schemes(*, importance: bool) -> str:
    """The schemes that need importance, or those that do not, as docs/formats.md lists them."""
    names = [recipe.name.lower() for recipe in RECIPES.values() if can_make(recipe)]
    return ", ".join(f"`{name}`" for name in names if lacks_without_importance(RECIPES[name.upper()]) == importance)


@pytest.mark.parametrize("name", TENSOR_IDS)
def test_the_table_of_types_is_what_the_code_does(name: str) -> None:
    assert type_row(name) in FORMATS.splitlines()


def test_the_table_has_no_type_that_gguf_lacks() -> None:
    assert re.findall(r"^\| ([A-Z]+[0-9]\w*) ", FORMATS, re.MULTILINE) == list(TENSOR_IDS)


@pytest.mark.parametrize("importance", [False, True])
def test_the_schemes_listed_are_those_that_can_be_made(importance: bool) -> None:
    assert f"{schemes(importance=importance)}." in FORMATS.replace("\n", " ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    options = {name: {o for p in command.params for o in p.opts} for name, command in cli.commands.items()}
    assert set(OPTION.findall(text)) <= set().union(*options.values(), *(p.opts for p in cli.params))
    for name, words in COMMAND.findall(text):
        assert isinstance(cli.commands.get(name), click.Command), f"smelt {name}"
        assert set(OPTION.findall(words)) <= options[name], f"smelt {name}{words}"


def test_the_readme_names_every_command() -> None:
    assert {name for name, _ in COMMAND.findall(PAGES[0].read_text(encoding="utf-8"))} >= set(cli.commands) - {"demo"}
    assert "smelt demo" in PAGES[0].read_text(encoding="utf-8")
