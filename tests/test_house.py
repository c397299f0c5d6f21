"""The house rules that a program can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ["formats", "kernels", "convert", "validate", "quantize"]
MODULES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])


def dotted(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Name)) else ""


def test_every_package_is_listed_for_the_wheel() -> None:
    found = {
        "smelt",
        *("smelt." + ".".join(p.parent.relative_to(ROOT).parts) for p in MODULES if p.name == "__init__.py"),
    }
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == found - {"smelt."}


def test_no_root_module_bears_a_standard_library_name() -> None:
    names = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_unpickles_asserts_or_swallows(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert dotted(node) not in {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "_pickle", "marshal", "shelve", "dill"} & set(names)
        assert not isinstance(node, ast.Assert), "validation must raise"
        if isinstance(node, ast.ExceptHandler) and (
            node.type is None or dotted(node.type) in {"Exception", "BaseException"}
        ):
            assert any(isinstance(inner, ast.Raise) for inner in ast.walk(node))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is_and_keeps_its_length(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 400


def test_the_cpu_path_imports_no_torch() -> None:
    code = (
        "import sys, smelt.cli, smelt.api, smelt.convert.inspect, smelt.quantize.quantize, smelt.kernels.scheme\n"
        "from smelt.dtypes import DTYPES; from smelt.kernels.scheme import can_decode, kernel\n"
        "[kernel(d) for d in DTYPES.values() if can_decode(d)]\n"
        "print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_command_line_imports_nothing_heavy_to_print_help() -> None:
    code = (
        "import sys, smelt.cli\nprint(sorted({'numpy', 'numba', 'tqdm', 'sentencepiece', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
