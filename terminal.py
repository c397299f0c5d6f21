"""What a person sees: a progress bar on a terminal, a line now and then elsewhere, sizes and tables as text."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

INTERVAL = 30.0  # seconds between lines where there is no terminal


def human(nbytes: float) -> str:
    """1536 -> "1.5 kB"; decimal units, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 1000 or unit == "TB":
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return ""


def binary(nbytes: int) -> str:
    """2684354560 -> "2.50 GiB"; memory comes in powers of two."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"


def printable(text: str) -> str:
    """Control characters escaped: names come from files, and a terminal obeys some of them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`printable` line by line."""
    return "\n".join(printable(line) for line in text.splitlines())


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of cells -> aligned lines; `right` names the columns that are flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class ProgressDisplay:
    """Call it with (done, total, label). A tqdm bar on a terminal, one stderr line per 30 s elsewhere, nothing if quiet."""

    def __init__(self, *, quiet: bool, unit: str = "B") -> None:
        self._quiet = quiet
        self._unit = unit
        self._bar: Any = None  # a tqdm, once there is something to draw
        self._last = self._started = time.monotonic()
        self._first = -1  # what was done already at the first call: a run that goes on did not do it now

    def __call__(self, done: int, total: int, label: str) -> None:
        """Show how far it is."""
        if self._quiet:
            return
        if self._first < 0:
            self._first, self._started = done, time.monotonic()
        if sys.stderr.isatty():
            self._draw(done, total, label)
        elif time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            left = (self._last - self._started) * (total - done) / max(1, done - self._first)
            print(f"smelt: {done / max(1, total):.0%} of {self._size(total)}, {left:.0f} s left", file=sys.stderr)

    def _size(self, total: int) -> str:
        return human(total) if self._unit == "B" else f"{total} {self._unit}"

    def _draw(self, done: int, total: int, label: str) -> None:
        if self._bar is None:
            from tqdm import tqdm

            scale = self._unit == "B"
            self._bar = tqdm(total=total, initial=done, unit=self._unit, unit_scale=scale, leave=False, file=sys.stderr)
        if self._bar.total != total:
            self._bar.reset(total)
        self._bar.set_description_str(printable(label)[:40], refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
