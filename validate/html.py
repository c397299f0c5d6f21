"""A validation report as one page: no script, no request, every plot inline, fit for a telephone, the dark and paper.

    report.html.j2  the page, autoescaped         report.css  its looks         plots.py  its figures, escaped in svg.py

The page's policy (a meta element) forbids it to load anything at all and allows the one style sheet by its digest, so that a
name with markup in it could do nothing even if it were not escaped. The same report gives the same page.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .drift import Drift
from .gates import Gate
from .plots import (
    Curve,
    Point,
    alone_bars,
    flip_bars,
    gate_meter,
    kld_histogram,
    kld_span,
    layer_curves,
    layer_span,
    layer_values,
    quality_points,
    tallest_share,
    widest_flip,
)
from .report import CandidateResult, Generation, ValidationReport
from .svg import swatch
from .wording import as_change, percent, short_names, significant, size

SAME_AXIS = ("relative error", "1 − cosine")  # what is drawn of each layer


def render(report: ValidationReport, command: str | None = None) -> str:
    """The page as text. `command` is the command line that made the report, to be shown for asking again."""
    style = _resource("report.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent, significant=significant, size=size, change=as_change, breakable=_breakable, visible=_visible
    )
    page = environment.from_string(_resource("report.html.j2"))
    return page.render(
        view=Page(report),
        report=report,
        asked=report.evaluation,
        command=command,
        style=Markup(style),
        style_digest=digest,
    )


def _resource(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _breakable(name: str) -> Markup:
    """A long name that may be broken after its dots and slashes."""
    pieces = [Markup.escape(piece) for piece in name.replace("/", "/\0").replace(".", ".\0").split("\0")]
    return Markup("<wbr>").join(pieces)


def _visible(token: str) -> str:
    """A token of blanks alone, so that its mark can be seen."""
    return token if token.strip() else token.replace(" ", "␣").replace("\n", "↵\n").replace("\t", "⇥") or "∅"


@dataclass(frozen=True)
class Row:
    """One candidate under the name and the colour that it has on the page."""

    name: str
    index: int
    result: CandidateResult

    @property
    def swatch(self) -> Markup:
        """Its line and symbol."""
        return Markup(swatch(self.index))

    @property
    def failed(self) -> list[Gate]:
        """The gates that it fails."""
        return [gate for gate in self.result.gates if not gate.passed]

    @property
    def agreement(self) -> float | None:
        """Mean share of tokens before the first divergence."""
        shares = [generation.agreement for generation in self.result.generations]
        return sum(shares) / len(shares) if shares else None

    def limit(self, name: str, text: str | None) -> Gate | None:
        """Its gate of this name; `text` where there are several."""
        return next((gate for gate in self.result.gates if gate.name == name and gate.text == text), None)


@dataclass(frozen=True)
class Page:
    """What the template asks for, figures included."""

    report: ValidationReport

    @cached_property
    def rows(self) -> list[Row]:
        """The candidates as they were given."""
        names = short_names([found.path for found in self.report.candidates])
        return [
            Row(name, index, found)
            for index, (name, found) in enumerate(zip(names, self.report.candidates, strict=True))
        ]

    @property
    def run(self) -> list[Row]:
        """Those that could be run."""
        return [row for row in self.rows if row.result.drifts]

    @property
    def verdict(self) -> str:
        """One sentence over all candidates."""
        n, passed = len(self.rows), sum(row.result.passed for row in self.rows)
        if n == 0:
            return "The reference alone: no candidate was given"
        if n == 1:
            return "The candidate passes every gate" if passed else "The candidate fails"
        if passed in (0, n):
            return f"All {n} candidates {'pass' if passed else 'fail'}"
        return f"{n - passed} of {n} candidates {'fails' if n - passed == 1 else 'fail'}"

    def text_name(self, text: int) -> str | None:
        """What gates call a text: nothing where there is just one."""
        texts = self.report.evaluation.texts
        return texts[text].name if len(texts) > 1 else None

    def drifts(self, text: int) -> list[tuple[Row, Drift]]:
        """What was measured on one text."""
        return [(row, row.result.drifts[text]) for row in self.run if text < len(row.result.drifts)]

    def histograms(self, text: int) -> list[tuple[Row, Markup, Markup]]:
        """For each candidate: its KLD on a text, and its flips. The axes are the same for all."""
        found = self.drifts(text)
        span = kld_span([drift.histogram for _, drift in found])
        tallest = tallest_share([drift.histogram for _, drift in found])
        widest = widest_flip([band for _, drift in found for band in drift.flips.bands])
        return [
            (
                row,
                Markup(
                    kld_histogram(
                        f"kld-{text}-{row.index}", row.name, row.index, drift.histogram, drift.kld, span, tallest
                    )
                ),
                Markup(flip_bars(f"flips-{text}-{row.index}", row.name, row.index, drift.flips.bands, widest)),
            )
            for row, drift in found
        ]

    def quality(self, text: int) -> list[Markup]:
        """Drift against size on one text: KLD and perplexity; nothing where no candidate could be run."""
        if not self.drifts(text):
            return []
        floor = self.report.noise_floor.kld.mean if self.report.noise_floor else None
        kld, change = self._points(text, "kld"), self._points(text, "perplexity")
        return [
            Markup(quality_points(f"size-kld-{text}", "KL divergence against size", kld, change=False, floor=floor)),
            Markup(quality_points(f"size-ppl-{text}", "Perplexity change against size", change, change=True)),
        ]

    def _points(self, text: int, name: str) -> list[Point]:
        points = []
        for row, drift in self.drifts(text):
            gate = row.limit(name, self.text_name(text))
            found = drift.kld.mean if name == "kld" else as_change(drift.delta_ln_ppl)
            limit, passed = (None, True) if gate is None else (gate.limit, gate.passed)
            points.append(Point(row.name, row.index, row.result.bits_per_weight, found, limit, passed))
        return points

    @property
    def curves(self) -> list[tuple[str, Markup]]:
        """The layers: relative error and 1 - cosine, accumulated and, where it was measured, isolated."""
        figures = []
        for number in SAME_AXIS:
            kinds = [(isolated, self._curves(number, isolated)) for isolated in (False, True)]
            span = layer_span([curve for _, curves in kinds for curve in curves])
            for isolated, curves in kinds:
                if curves:
                    kind = "isolated" if isolated else "accumulated"
                    key, title = f"layers-{number[:3].strip()}-{kind}", f"{number.capitalize()}, {kind}"
                    figures.append((title, Markup(layer_curves(key.replace(" ", ""), title, curves, span))))
        return figures

    def _curves(self, number: str, isolated: bool) -> list[Curve]:
        found = [(row, layer_values(row.result.layers, number, isolated)) for row in self.rows]
        return [Curve(row.name, row.index, values) for row, values in found if values is not None]

    @property
    def alone(self) -> list[tuple[Row, Markup]]:
        """What each layer costs by itself, of the candidates that it was measured of."""
        figures = []
        for row in self.rows:
            costs = [layer.kld_alone for layer in row.result.layers if layer.kld_alone is not None]
            if costs:
                drawn = alone_bars(f"alone-{row.index}", row.name, row.index, costs, row.result.alone)
                figures.append((row, Markup(drawn)))
        return figures

    @property
    def prompts(self) -> list[tuple[Generation, list[Row], list[tuple[Row, Generation]]]]:
        """For each prompt: any generation of it, the candidates that write what the reference does, and the others."""
        written = [(row, generation) for row in self.rows for generation in row.result.generations]
        names = list(dict.fromkeys(generation.name for _, generation in written))
        found = []
        for name in names:
            each = [(row, generation) for row, generation in written if generation.name == name]
            same = [row for row, generation in each if generation.first_divergence is None]
            found.append((each[0][1], same, [pair for pair in each if pair[1].first_divergence is not None]))
        return found

    @staticmethod
    def meter(gate: Gate) -> Markup | None:
        """What is used up of a gate's limit."""
        drawn = gate_meter(gate)
        return None if drawn is None else Markup(drawn)
