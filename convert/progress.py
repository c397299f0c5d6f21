"""How far a run or a measurement has come: `progress(done, total, label)`, called by one thread at a time."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, label: str) -> None:
    """Tells no one."""
