"""The few shapes that a report's plots are drawn with, as SVG text. Colours are classes: the page's style sheet has them.

    figure width 360 | plot from x = left to 348 | y grows downwards | fonts of 11 units: 10 px on a telephone

Every figure has a title and a description, which screen readers speak; every mark may have its own, shown while it is
pointed at. All text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .wording import superscript

WIDTH = 360
RIGHT = 348
CHARACTER = 6.2  # width of a character of the 11-unit font, about

_PLAIN = "".join(map(chr, (9, 10, 13)))  # the control characters that XML has


def words(text: str) -> str:
    """Escaped text; control characters that no XML holds become U+FFFD."""
    return escape("".join(c if c >= " " or c in _PLAIN else "\ufffd" for c in text), {'"': "&quot;"})


def figure(key: str, title: str, description: str, height: float, body: Sequence[str]) -> str:
    """The whole picture; `key` is unique in the page."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{words(title)}</title><desc id="{key}-d">{words(description)}</desc>{"".join(body)}</svg>'
    )


def text(x: float, y: float, content: str, style: str = "") -> str:
    """A line of text; style: `mid`, `end`, `muted`, `strong`."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{style}">{words(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def bar(x: float, y: float, width: float, height: float, style: str, told: str = "") -> str:
    """A filled rectangle."""
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}" class="{style}"'
    return f"<rect {shape}>{_told(told)}</rect>" if told else f"<rect {shape}/>"


def curve(points: Sequence[tuple[float, float]], style: str) -> str:
    """Points joined by lines."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="{style}"/>'


# Around (0, 0), alike in area: series differ by shape too, for eyes and printers that know no colours.
_MARKS = (
    "M-3.5,0A3.5,3.5 0 1 0 3.5,0A3.5,3.5 0 1 0 -3.5,0Z",
    "M-3.2,-3.2H3.2V3.2H-3.2Z",
    "M0,-4.2L4.2,3.2H-4.2Z",
    "M0,-4.4L4.4,0L0,4.4L-4.4,0Z",
    "M0,4.2L4.2,-3.2H-4.2Z",
    "M-4,-1.3H-1.3V-4H1.3V-1.3H4V1.3H1.3V4H-1.3V1.3H-4Z",
)
N_COLOURS = 8


def series(index: int) -> str:
    """The class of one candidate's colour; they come round again after eight."""
    return f"s{index % N_COLOURS}"


def mark(index: int, x: float, y: float, style: str, told: str = "") -> str:
    """The symbol of one candidate."""
    shape = _MARKS[index % len(_MARKS)]
    return (
        f'<path d="{shape}" transform="translate({x:.1f},{y:.1f})" class="{series(index)} {style}">{_told(told)}</path>'
    )


def _told(told: str) -> str:
    return f"<title>{words(told)}</title>" if told else ""


def swatch(index: int) -> str:
    """One candidate's line and symbol for the legend beside its name."""
    drawn = line(1, 6, 23, 6, f"{series(index)} curve") + mark(index, 12, 6, "dot")
    return f'<svg class="swatch" viewBox="0 0 24 12" aria-hidden="true">{drawn}</svg>'


@dataclass(frozen=True)
class Scale:
    """Values low..high to places start..stop, by `bend` (log10, asinh, or nothing)."""

    low: float
    high: float
    start: float
    stop: float
    bend: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        """The place of a value; one beyond the ends is put at the end."""
        low, high = self.bend(self.low), self.bend(self.high)
        share = (self.bend(min(max(value, self.low), self.high)) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def decades(low: float, high: float, most: int = 7) -> list[float]:
    """The powers of ten in [low, high], thinned to at most so many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / most))
    return [10.0**power for power in range(first, last + 1, step)]


def steps(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in [low, high]."""
    width = (high - low) / most
    if width <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(width))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= width)
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def power_of_ten(value: float) -> str:
    """How an axis names a decade: 0.01, 10⁻⁵."""
    return f"{value:g}" if 1e-3 <= value <= 1e4 else "10" + superscript(round(math.log10(value)))
