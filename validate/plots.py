"""The plots of a report: each a function from values to one SVG figure, of the same width.

kld_histogram   tokens by their KLD, log bins, with median, mean and 99th percentile
flip_bars       tokens whose likeliest successor changed, by the reference's confidence
layer_curves    a number for each layer, log axis, a curve for each candidate
alone_bars      nats that each part of the model costs by itself
quality_points  KLD or perplexity change against bits per weight, with intervals and limits
gate_meter      how much of a limit is used up
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .bootstrap import Interval
from .drift import Divergence, FlipBand, Histogram
from .gates import Gate
from .layers import Alone, LayerDrift
from .svg import (
    CHARACTER,
    RIGHT,
    WIDTH,
    Scale,
    bar,
    curve,
    decades,
    figure,
    line,
    mark,
    power_of_ten,
    series,
    steps,
    text,
    words,
)
from .wording import percent, significant

LEFT = 44  # room for the y axis' numbers


def kld_span(histograms: Sequence[Histogram]) -> tuple[int, int]:
    """The bins [first, last] that hold a token of any candidate, and one beside them: plots then share an axis."""
    filled = [index for each in histograms for index, count in enumerate(each.counts) if count]
    last_bin = max((len(each.counts) - 1 for each in histograms), default=0)
    return max(0, min(filled, default=0) - 1), min(last_bin, max(filled, default=0) + 1)


def kld_histogram(
    key: str, name: str, index: int, found: Histogram, kld: Divergence, span: tuple[int, int], tallest: float
) -> str:
    """Share of tokens in each bin; `span` of bins and the `tallest` share are the same for plots side by side."""
    first, last = span
    edges = (found.edges[0] / 1.8, *found.edges, found.edges[-1] * 1.8)  # the outermost bins have no outer edge
    low, high, top, bottom = edges[first], edges[last + 1], 44.0, 150.0
    x, y = Scale(low, high, LEFT, RIGHT, math.log10), Scale(0, tallest, bottom, top)
    total = max(1, sum(found.counts))
    body = [*_y_axis(y, [(value, f"{value:.0%}") for value in steps(0, tallest, 3)])]
    for place in range(first, last + 1):
        share = found.counts[place] / total
        left, right = x(edges[place]), x(edges[place + 1])
        told = f"{_bin_words(found, place)}: {found.counts[place]:,} tokens, {percent(share)}"
        if found.counts[place]:
            body.append(bar(left + 0.5, y(share), right - left - 1, bottom - y(share), f"{series(index)} fill", told))
    body += [line(LEFT, bottom, RIGHT, bottom, "axis"), *_x_decades(x, low, high, bottom)]
    marks = (("median", kld.median), ("mean", kld.mean.mean), ("99%", kld.p99))
    for row, (label, value) in enumerate(marks):
        body += _marked(x, f"{label} {significant(value)}", value, 12.0 + 12 * row, bottom)
    body.append(text((LEFT + RIGHT) / 2, bottom + 30, "KL divergence of a token, nats", "mid muted"))
    said = ", ".join(f"{label} {significant(value)}" for label, value in marks)
    title = f"KL divergence of the tokens under {name}"
    return figure(key, title, f"Histogram over {total:,} tokens, logarithmic bins; {said} nats.", bottom + 36, body)


def _bin_words(found: Histogram, place: int) -> str:
    if place == 0:
        return f"below {significant(found.edges[0], 2)}"
    if place == len(found.edges):
        return f"{significant(found.edges[-1], 2)} and more"
    return f"{significant(found.edges[place - 1], 2)} to {significant(found.edges[place], 2)}"


def _marked(x: Scale, label: str, value: float, y: float, bottom: float) -> list[str]:
    """A line up from the axis to its label, which stands on the side that has room."""
    at = x(value if value > 0 else x.low)
    left = at + 4 + CHARACTER * len(label) > WIDTH
    return [line(at, y - 8, at, bottom, "marker"), text(at + (-4 if left else 4), y, label, "end" if left else "")]


def flip_bars(key: str, name: str, index: int, bands: Sequence[FlipBand], widest: float) -> str:
    """Share of tokens whose likeliest successor is another one now, for each band of the reference's confidence."""
    x = Scale(0, max(widest, 1e-9), 76, 270)
    body, said = [], []
    for row, band in enumerate(bands):
        y = 16.0 + 20 * row
        share = band.flips / band.tokens if band.tokens else 0.0
        label = f"{band.low * 100:.0f} to {band.high * 100:.0f}%"
        told = f"{band.flips:,} of {band.tokens:,}"
        body += [
            text(70, y, label, "end muted"),
            bar(76, y - 10, 194, 13, "track"),
            bar(76, y - 10, x(share) - 76, 13, f"{series(index)} fill", f"{label} sure: {told} changed"),
            text(276, y, percent(share) if band.tokens else "no tokens"),
        ]
        said.append(f"{label} sure: {told}")
    title = f"Changed likeliest tokens under {name}, by how sure the reference was"
    return figure(key, title, "; ".join(said) + ".", 8.0 + 20 * len(bands), body)


@dataclass(frozen=True)
class Curve:
    """One candidate's line: `index` gives its colour, `values` a number for each layer."""

    name: str
    index: int
    values: tuple[float, ...]


def layer_values(layers: Sequence[LayerDrift], number: str, isolated: bool) -> tuple[float, ...] | None:
    """`number` ("relative error" or "1 − cosine") of each layer; None where it was not measured of all."""
    parts = [layer.isolated if isolated else layer.accumulated for layer in layers]
    there = [part for part in parts if part is not None]
    if not layers or len(there) < len(parts):
        return None
    return tuple(part.relative_error if number == "relative error" else 1 - part.cosine for part in there)


def layer_span(curves: Sequence[Curve]) -> tuple[float, float]:
    """Whole decades that hold every positive value: plots side by side share an axis."""
    positive = [value for each in curves for value in each.values if 0 < value < math.inf]
    if not positive:
        return 1e-8, 1.0
    low, high = (10.0 ** math.floor(math.log10(min(positive))), 10.0 ** math.ceil(math.log10(max(positive))))
    return (low, high) if high > low else (low / 10, high)


def layer_curves(key: str, title: str, curves: Sequence[Curve], span: tuple[float, float]) -> str:
    """A line for each candidate over the layers. What equals the reference lies on the axis at 0."""
    bottom, top, n = 170.0, 10.0, max((len(each.values) for each in curves), default=0)
    low, high = span
    nought = any(value <= 0 for each in curves for value in each.values)
    y = Scale(low, high, bottom - (14 if nought else 0), top, math.log10)
    x = Scale(0, max(1, n - 1), LEFT + 8, RIGHT - 8)
    body = _y_axis(y, [(value, power_of_ten(value)) for value in decades(low, high)])
    body += [line(LEFT, bottom, RIGHT, bottom, "axis")]
    if nought:
        body.append(text(LEFT - 6, bottom + 4, "0", "end muted"))
    for layer in (int(value) for value in steps(0, n - 1, min(8, max(1, n - 1)))):
        body += _x_tick(x(layer), bottom, f"{layer}")
    every = max(1, n // 12)
    for each in curves:
        points = [(x(layer), bottom if value <= 0 else y(value)) for layer, value in enumerate(each.values)]
        if len(points) > 1:
            body.append(curve(points, f"{series(each.index)} curve"))
        for layer in range(each.index % every, n, every) if len(points) == n else ():
            told = f"{each.name}, layer {layer}: {significant(each.values[layer])}"
            body.append(mark(each.index, *points[layer], "dot", told))
    body.append(text((LEFT + RIGHT) / 2, bottom + 31, "layer", "mid muted"))
    worst = [f"{each.name}: most {significant(max(each.values))} after layer {_worst(each)}" for each in curves]
    return figure(key, title, f"{n} layers, logarithmic axis. " + "; ".join(worst) + ".", bottom + 37, body)


def _worst(each: Curve) -> int:
    return max(range(len(each.values)), key=each.values.__getitem__)


def alone_bars(key: str, name: str, index: int, layers: Sequence[float], outer: Alone | None) -> str:
    """Nats that each part costs by itself: embedding, layers, head. Infinite ones reach the top."""
    every = max(1, math.ceil(len(layers) / 10))
    # (name, what stands below its bar, nats)
    parts = [(f"layer {layer}", "" if layer % every else f"{layer}", value) for layer, value in enumerate(layers)]
    if outer is not None:
        parts = [("the embedding", "in", outer.embedding), *parts, ("the head", "out", outer.head)]
    tallest = max((value for *_, value in parts if math.isfinite(value)), default=0.0) or 1e-9
    top, bottom = 10.0, 130.0
    y = Scale(0, tallest, bottom, top)
    width = (RIGHT - LEFT) / max(1, len(parts))
    body = _y_axis(y, [(value, significant(value, 2)) for value in steps(0, tallest, 3)])
    for place, (part, label, value) in enumerate(parts):
        x = LEFT + place * width
        told = f"{part}: {significant(value)} nats"
        body.append(bar(x + 0.1 * width, y(value), 0.8 * width, bottom - y(value), f"{series(index)} fill", told))
        body.append(text(x + width / 2, bottom + 14, label, "mid muted"))
    body += [
        line(LEFT, bottom, RIGHT, bottom, "axis"),
        text((LEFT + RIGHT) / 2, bottom + 30, "layer; in: embedding, out: head", "mid muted"),
    ]
    worst = max(parts, key=lambda part: part[2])
    said = f"The most is {significant(worst[2])} nats, from {worst[0]}."
    return figure(key, f"KL divergence that each part of {name} costs alone", said, bottom + 36, body)


@dataclass(frozen=True)
class Point:
    """One candidate: where it is, how far it is sure, and what it may be at most (None: not judged)."""

    name: str
    index: int
    bits: float
    found: Interval
    limit: float | None
    passed: bool


def quality_points(key: str, title: str, points: Sequence[Point], *, change: bool, floor: float | None = None) -> str:
    """Drift against bits per weight. change: perplexity's, on an axis that is linear around 0; else KLD, logarithmic."""
    bottom, top = 200.0, 14.0
    y, ticks = _change_axis(points, bottom, top) if change else _kld_axis(points, floor, bottom, top)
    bits = [point.bits for point in points]
    room = max(0.4, 0.08 * (max(bits) - min(bits)))
    x = Scale(min(bits) - room, max(bits) + room, LEFT + 4, RIGHT - 4)
    body = [*_y_axis(y, ticks), line(LEFT, bottom, RIGHT, bottom, "axis")]
    for value in steps(x.low, x.high, 5):
        body += _x_tick(x(value), bottom, f"{value:g}")
    if floor is not None and not change and floor > 0:
        body += [line(LEFT, y(floor), RIGHT, y(floor), "floor"), text(RIGHT, y(floor) - 4, "noise floor", "end muted")]
    taken = [
        (x(point.bits) - 6, y(point.found.mean) - 6, x(point.bits) + 6, y(point.found.mean) + 6) for point in points
    ]
    said = []
    for point in points:
        body += _point(point, x, y, taken, change)
        said.append(f"{point.name} at {point.bits:.2f} bits: {_value(point.found.mean, change)}")
    body.append(text((LEFT + RIGHT) / 2, bottom + 31, "bits per weight", "mid muted"))
    return figure(key, title, "; ".join(said) + ".", bottom + 37, body)


def _point(point: Point, x: Scale, y: Scale, taken: list[tuple[float, float, float, float]], change: bool) -> list[str]:
    at, middle = x(point.bits), y(point.found.mean)
    low, high = y(point.found.lower), y(point.found.upper)
    body = [line(at, low, at, high, f"{series(point.index)} whisker")]
    if point.limit is not None:
        body.append(line(at - 13, y(point.limit), at + 13, y(point.limit), "limit"))
        taken.append((at - 13, y(point.limit) - 2, at + 13, y(point.limit) + 2))
    told = f"{point.name}: {_value(point.found.mean, change)}, limit {_value(point.limit, change)}"
    body.append(mark(point.index, at, middle, "dot" if point.passed else "hollow", told))
    width = CHARACTER * len(point.name)
    # Beside the point, else below or above it; where no place is free, below.
    places = ((8, 4), (-8 - width, 4), (-width / 2, -10), (-width / 2, 18), (8, -10), (8, 18))
    boxes = [(at + dx, middle + dy - 9, at + dx + width, middle + dy + 3) for dx, dy in places]
    inside = [box for box in boxes if box[0] >= LEFT - 8 and box[2] <= WIDTH]
    free = [box for box in inside if not any(_meet(box, other) for other in taken)]
    chosen = (free or boxes[3:])[0]
    taken.append(chosen)
    body.append(text(chosen[0], chosen[3] - 3, point.name))
    return body


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _value(value: float | None, change: bool) -> str:
    if value is None:
        return "none"
    return percent(value, signed=True) if change else significant(value)


def _kld_axis(
    points: Sequence[Point], floor: float | None, bottom: float, top: float
) -> tuple[Scale, list[tuple[float, str]]]:
    values = [
        v for p in points for v in (p.found.lower, p.found.upper, p.limit, floor) if v is not None and 0 < v < math.inf
    ]
    low, high = min(values, default=1e-6), max(values, default=1.0)
    low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.05))
    y = Scale(low, high, bottom, top, lambda value: math.log10(max(value, low)))
    return y, [(value, power_of_ten(value)) for value in decades(low, high)]


LINEAR = 5e-4  # changes of perplexity below this are drawn about in proportion, those above by their logarithm


def _change_axis(points: Sequence[Point], bottom: float, top: float) -> tuple[Scale, list[tuple[float, str]]]:
    ends = [end for p in points for end in (p.found.lower, p.found.upper, p.limit or 0.0) if math.isfinite(end)]
    low, high = min(0.0, min(ends, default=0.0)), max(1e-3, max(ends, default=0.0))
    y = Scale(low * 1.2, high * 1.3, bottom, top, lambda value: math.asinh(value / LINEAR))
    ticks = [sign * 10.0**power for sign in (-1, 1) for power in range(-3, 4)]
    shown = [0.0, *(tick for tick in ticks if y.low <= tick <= y.high)]
    return y, [(tick, f"{tick * 100:+g}%".replace("-", "−") if tick else "0") for tick in shown]


def gate_meter(gate: Gate) -> str | None:
    """What is used up of a gate's limit, the limit in the middle; None for a gate without a number to it."""
    if gate.limit is None or gate.value is None or not math.isfinite(gate.value):
        return None
    least = gate.name in ("top1", "top5")
    allowed = 1 - gate.limit if least else gate.limit
    if allowed <= 0:
        return None
    middle = gate.value if gate.measured is None else gate.measured
    judged, measured = ((1 - value if least else value) / allowed for value in (gate.value, middle))
    x = Scale(0, 2, 2, 118)
    state = "good" if gate.passed else "bad"
    body = [
        bar(2, 4, 116, 8, "track"),
        bar(2, 4, x(judged) - 2, 8, f"{state} soft"),
        bar(2, 4, x(measured) - 2, 8, state),
        line(60, 1, 60, 15, "limit"),
    ]
    said = words(f"{percent(measured)} of the limit measured, {percent(judged)} at the end of the interval")
    return f'<svg class="meter" viewBox="0 0 120 16" role="img" aria-label="{said}"><title>{said}</title>{"".join(body)}</svg>'


def _y_axis(y: Scale, ticks: Sequence[tuple[float, str]]) -> list[str]:
    body = []
    for value, label in ticks:
        body += [line(LEFT, y(value), RIGHT, y(value), "grid"), text(LEFT - 6, y(value) + 4, label, "end muted")]
    return body


def _x_decades(x: Scale, low: float, high: float, bottom: float) -> list[str]:
    return [part for value in decades(low, high) for part in _x_tick(x(value), bottom, power_of_ten(value))]


def _x_tick(at: float, bottom: float, label: str) -> list[str]:
    return [line(at, bottom, at, bottom + 4, "axis"), text(at, bottom + 16, label, "mid muted")]


def tallest_share(histograms: Sequence[Histogram]) -> float:
    """The largest share of tokens in a bin of any of them."""
    return max((max(each.counts) / max(1, sum(each.counts)) for each in histograms if each.counts), default=0.0) or 1.0


def widest_flip(bands: Sequence[FlipBand]) -> float:
    """The largest share of changed tokens of any band."""
    return max((band.flips / band.tokens for band in bands if band.tokens), default=0.0)
