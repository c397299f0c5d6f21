"""What every test may use.

`from meta_checkpoints import write_meta` works in any test file: with `--import-mode=importlib` no test folder is on
`sys.path` (and none should be: `tests/kernels` would be importable as `kernels`), so the module is registered here by
its path. It is loaded on first use, for it imports torch.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no defect: examples are the same every time, and none is judged by its pace.
settings.register_profile("smelt", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("smelt")


def register(name: str) -> None:
    """Make tests/<name>.py importable as <name>; its code runs when something is first taken from it."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def pytest_addoption(parser: pytest.Parser) -> None:
    """--write-tables: tests that measure a table of the documents write their rows instead of comparing them."""
    parser.addoption("--write-tables", action="store_true", help="write the documents' measured tables anew")


@pytest.fixture
def write_tables(request: pytest.FixtureRequest) -> bool:
    """Whether measured tables are written."""
    return bool(request.config.getoption("--write-tables"))


register("meta_checkpoints")
register("llama_shapes")
register("made_reports")


@pytest.fixture(scope="session")
def tiny_llama() -> Path:
    """The folder of the small trained LLaMA in Meta's format, two shards. Nothing may be written into it."""
    return Path(__file__).parents[1] / "examples" / "tiny-llama"
