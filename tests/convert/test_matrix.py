"""Every path A -> B -> C -> A of every family ends where it began; the table in docs/dialects.md is what was measured.

pytest tests/convert/test_matrix.py -m "long or not long" --write-tables        writes the table anew
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from smelt.convert.architecture import families

from . import tables
from .matrix import MODELS, measure
from .small_models import SMALL

TABLE = "round trips"
COLUMNS = {
    "released": "released",
    "meta": "Meta",
    "metaseq": "metaseq",
    "safetensors": "safetensors",
    "gguf": "GGUF",
    "others": "GGUF of others",
    "bin": ".bin",
    "logits": "logits",
}
LONG = (
    *("LLaMA 1", "Code Llama", "Llama 3", "Llama 3.1", "Llama 3.2, transformers'"),
    *("LLaMA, linear", "LLaMA, dynamic", "LLaMA, biases", "Qwen 2, yarn"),
)
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_every_path_ends_where_it_began_and_the_table_says_so(tmp_path: Path, name: str, write_tables: bool) -> None:
    found = measure(name, tmp_path)
    for cell in found.values():
        assert re.fullmatch(r"\d+ files|\d+ contents|refused|\d+ equal, \w+", cell), found
    cells = [found.get(key, "none") for key in COLUMNS]
    if write_tables:
        tables.write_row(TABLE, name, cells, list(MODELS))
    assert tables.rows(TABLE)[name] == cells


def test_the_table_has_a_row_for_every_model_and_a_model_for_every_family() -> None:
    assert list(tables.rows(TABLE)) == list(MODELS) and tables.columns(TABLE) == list(COLUMNS.values())
    of_transformers = {SMALL[model.small].family for model in MODELS.values() if model.small is not None}
    assert of_transformers == {family.name for family in families()}
