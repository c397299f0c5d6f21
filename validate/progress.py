"""How far a measurement has come: `progress(done, total, label)`, called from one thread."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, label: str) -> None:
    """Tells no one."""
