"""Tables in the documents that tests measure: each test holds its row to what it found, and with --write-tables writes it.

<!-- table: NAME -->
| model | column | ...
| --- | --- | ...
| row | cell | ...
<!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "dialects.md"


def rows(table: str) -> dict[str, list[str]]:
    """{first cell: the others} of a table's rows."""
    lines = _lines(table)[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: others for first, *others in cells}


def columns(table: str) -> list[str]:
    """The head of a table, but its first cell."""
    return [cell.strip() for cell in _lines(table)[0].strip("|").split("|")][1:]


def write_row(table: str, name: str, cells: Sequence[str], order: Sequence[str]) -> None:
    """Put a row in its place among those of `order`; rows of other names go."""
    found = {**rows(table), name: list(cells)}
    body = ["| " + " | ".join((row, *found[row])) + " |" for row in order if row in found]
    text = PAGE.read_text(encoding="utf-8")
    start, stop = _span(table, text)
    PAGE.write_text(text[:start] + "\n".join((*_lines(table)[:2], *body, "")) + text[stop:], encoding="utf-8")


def _lines(table: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    start, stop = _span(table, text)
    return text[start:stop].splitlines()


def _span(table: str, text: str) -> tuple[int, int]:
    match = re.search(rf"<!-- table: {re.escape(table)} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert match is not None, f"{PAGE.name} has no table {table!r}"
    return match.span(1)
