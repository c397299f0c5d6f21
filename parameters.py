"""Words of the command line that click has no type for."""

from __future__ import annotations

import math
import re
from typing import Any

import click

SIZES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class Size(click.ParamType[int]):
    """5GB, 500MiB, 1234 -> bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse, or fail as a usage error."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([KMG]i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size such as 5GB or 500MiB", param, ctx)
        return int(float(found[1]) * SIZES[(found[2] or "").upper()])


class Real(click.FloatRange):
    """A finite number; click's own range lets NaN pass, which no comparison excludes."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Percent(click.ParamType[float]):
    """1.5% or 0.015 -> 0.015."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse, or fail as a usage error."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*(%?)", str(value))
        if found is None:
            self.fail(f"{value!r} is not a share such as 1.5% or 0.015", param, ctx)
        return float(found[1]) / (100 if found[2] else 1)
