"""How a report says its numbers: the same words on the terminal, in Markdown and in HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from .bootstrap import Interval
from .drift import exponential

NOT_MEASURED = "not measured"
_PART = re.compile(r"[^.-]+[.-]*|[.-]+")  # of a file's name, with what ends it
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def as_change(logarithm: Interval) -> Interval:
    """d ln PPL -> the fraction that perplexity changes by."""
    low, high = (None if end is None else _less_one(end) for end in (logarithm.low, logarithm.high))
    return Interval(_less_one(logarithm.mean), low, high)


def _less_one(nats: float) -> float:
    """e^nats - 1: exact near 0, infinity where a float cannot hold it."""
    return math.expm1(nats) if nats < 1 else exponential(nats) - 1


def significant(value: float | None, digits: int = 3) -> str:
    """0.00214, 3.1×10⁻⁵, 12.3: so many digits, powers of ten where zeros would have to be counted."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "NaN"
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        decimals = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:.{max(0, decimals)}f}".replace("-", "−")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}×10{superscript(int(exponent))}".replace("-", "−")


def superscript(exponent: int) -> str:
    """-5 -> ⁻⁵."""
    return str(exponent).translate(_SUPERSCRIPTS)


def percent(value: float | None, *, signed: bool = False) -> str:
    """0.9193 -> 91.93%; three decimals below 0.1 %, as many as tell two candidates apart."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return significant(value)
    decimals = 2 if value == 0 or abs(value) >= 1e-3 else 3 if abs(value) >= 1e-4 else 4
    return f"{value:{'+' if signed and value else ''}.{decimals}%}".replace("-", "−")


def size(nbytes: int) -> str:
    """3670016 -> 3.50 MiB: memory comes in powers of two."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(nbytes) >= 1 << power:
            return f"{nbytes / (1 << power):.2f} {unit}"
    return f"{nbytes} B"


def short_names(paths: Sequence[str]) -> list[str]:
    """What tells the candidates apart: their file names, without what all of them begin and end with.

    "m.q8_0.gguf", "m.q4_0.gguf" -> "q8_0", "q4_0". The whole paths where the files' names are not all different.
    """
    names = [Path(path).name or path for path in paths]
    if len(set(names)) < len(names):
        return list(paths)
    parts = [_PART.findall(name) for name in names]
    while len(names) > 1 and len({each[0] for each in parts if each}) == 1 and all(len(each) > 1 for each in parts):
        parts = [each[1:] for each in parts]
    while len(names) > 1 and len({each[-1] for each in parts}) == 1 and all(len(each) > 1 for each in parts):
        parts = [each[:-1] for each in parts]
    return ["".join(each).rstrip(".-") or name for each, name in zip(parts, names, strict=True)]
