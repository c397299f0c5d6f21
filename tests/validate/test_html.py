"""The page: whole, escaped, silent, readable on a telephone and in the dark."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_reports import a_candidate, a_report
from smelt.validate.gates import Gate
from smelt.validate.html import render
from smelt.validate.plots import gate_meter
from smelt.validate.svg import Scale, decades, steps
from smelt.validate.wording import percent, short_names, significant, size

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>&amp;'
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium: apt-get install chromium")


class Outline(HTMLParser):
    """Every element that was opened, its attributes, and what was left open at the end."""

    VOID = ("meta", "br", "wbr")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def five(**options: object) -> str:
    """Five candidates, the last two of them bad."""
    names = ("q8_0", "q4_k_m", "q4_0", "q3_k_m")
    good = [a_candidate(f"out/m.{name}.gguf", k, passed=k < 3) for k, name in enumerate(names)]
    return render(a_report(*good, a_candidate("out/m.nan.gguf", 4, run=False)), "smelt validate ref out/m.q8_0.gguf")


def test_the_page_begins_with_the_verdict_and_each_failed_gate_in_words() -> None:
    page = five()
    assert "2 of 5 candidates fail" in page
    top = page[: page.index("<nav")]
    for reason in ("mean KLD is at most 0.2, limit 0.05", "3 NaN in t"):
        assert reason in top
    assert "mean KLD is at most 0.012" not in top


@pytest.mark.parametrize(
    ("passed", "said"),
    [([True], "passes every gate"), ([False], "The candidate fails"), ([True] * 3, "All 3 candidates pass")],
)
def test_the_verdict_counts_candidates(passed: list[bool], said: str) -> None:
    found = [a_candidate(f"{k}.gguf", k, passed=one) for k, one in enumerate(passed)]
    assert said in render(a_report(*found))


def test_every_element_is_closed_and_every_figure_and_table_has_its_words() -> None:
    outline = Outline(five())
    assert outline.open == []
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    pictures = [each for each in outline.named("svg") if each.get("role") == "img"]
    assert pictures
    for each in pictures:
        assert each.get("aria-label") or set(str(each["aria-labelledby"]).split()) <= set(ids)
    assert len(outline.named("caption")) == len(outline.named("table"))
    targets = {str(each["href"]) for each in outline.named("a")}
    assert targets <= {f"#{name}" for name in ids}
    assert [tag for tag, _ in outline.elements if tag == "h1"] == ["h1"]


def test_names_texts_prompts_and_the_command_are_escaped() -> None:
    hostile = a_candidate(f"out/{HOSTILE}.gguf", 0)
    generation = replace(hostile.generations[1], prompt=HOSTILE, candidate=(HOSTILE, HOSTILE, HOSTILE))
    gates = (Gate("finite", 0, 1.0, False, HOSTILE),)
    tensor = replace(hostile.tensors[0], name=HOSTILE)
    hostile = replace(hostile, generations=(generation,), gates=gates, tensors=(tensor,))
    page = render(a_report(hostile, reference=HOSTILE, name=HOSTILE), f"smelt validate {HOSTILE}")
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("&lt;script") > 10
    assert Outline(page).open == []


def test_two_names_that_are_hostile_reach_the_plots_escaped() -> None:
    page = render(a_report(a_candidate(f"{HOSTILE}a", 0), a_candidate(f"{HOSTILE}b", 1)))
    assert "<script" not in page
    assert Outline(page).open == []


def test_the_page_names_nothing_to_fetch_and_forbids_fetching() -> None:
    page = five()
    assert not re.search(r"(?i)https?:|url\(|@import|\bsrc=|<link|<script|<iframe|<object|<form|\son\w+=", page)
    policy = next(each["content"] for each in Outline(page).named("meta") if each.get("http-equiv"))
    style = page[page.index("<style>") + 7 : page.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not any("style" in attributes for _, attributes in Outline(page).elements)


def test_the_same_report_gives_the_same_page() -> None:
    assert five() == five()


def test_each_text_has_its_section_and_gates_name_theirs() -> None:
    page = render(a_report(a_candidate("a.gguf", 0, texts=2), a_candidate("b.gguf", 1, texts=2), texts=2))
    for wanted in ('id="text-0"', 'id="text-1"', "On text0", "On text1", "on text1</span>"):
        assert wanted in page


def test_a_candidate_that_could_not_be_run_leaves_the_figures_out() -> None:
    page = render(a_report(a_candidate("nan.gguf", 0, run=False)))
    assert "not run: see its gates" in page
    assert 'class="plot"' not in page
    assert "What they write" not in page


def test_the_reference_alone_makes_a_page() -> None:
    assert "no candidate was given" in render(a_report())


def test_a_reference_of_unknown_size_makes_a_page() -> None:
    report = a_report(a_candidate("a.gguf", 0))
    held = replace(report.reference, bits_per_weight=None, parameters=None, nbytes=None)
    assert "not known" in render(replace(report, reference=held, noise_floor=None))


def test_the_first_token_that_differs_is_marked() -> None:
    page = render(a_report(a_candidate("a.gguf", 0)))
    assert " the<mark> d&lt;o&gt;g0</mark>" in page
    assert "parts at token 1 of 3, after 33%" in page
    assert "the same for all 3 tokens, a.gguf" in page


def test_costs_of_layers_alone_and_32_layers_are_drawn() -> None:
    page = render(a_report(a_candidate("a.gguf", 0, layers=32, alone=True)))
    assert "What each layer costs alone" in page
    assert "32 layers, logarithmic axis" in page
    assert page.count("the embedding:") == 1


def test_infinite_and_missing_numbers_are_drawn_too() -> None:
    found = a_candidate("a.gguf", 0)
    drift = replace(
        found.drifts[0], perplexity=float("inf"), delta_ln_ppl=replace(found.drifts[0].delta_ln_ppl, high=None)
    )
    equal = replace(found.layers[0].accumulated, cosine=1.0, relative_error=0.0)
    layers = (replace(found.layers[0], accumulated=equal, isolated=None), *found.layers[1:])
    page = render(a_report(replace(found, drifts=(drift,), layers=layers)))
    assert "∞" in page
    assert "no interval from one chunk" in page
    assert "nan" not in re.sub(r"[^\w.]", " ", page).split()


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_stands_out_from_its_ground(scheme: int) -> None:
    css = five()
    block = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    pairs = [(text, ground) for text in ("ink", "muted") for ground in ("page", "card", "track", "fail-soft")]
    pairs += [("pass", "pass-soft"), ("fail", "fail-soft"), ("link", "card"), ("ink", "mark")]
    for text, ground in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
    for index in range(8):  # lines and points: 3 is enough
        light, dark = sorted((luminance(colours[f"c{index}"]), luminance(colours["card"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, index


def test_candidates_are_called_by_what_tells_them_apart() -> None:
    assert short_names(["a/m-7b.q8_0.gguf", "a/m-7b.q4_k_m.gguf", "b/m-7b.q4_0.gguf"]) == ["q8_0", "q4_k_m", "q4_0"]
    assert short_names(["a/m.gguf", "b/m.gguf"]) == ["a/m.gguf", "b/m.gguf"]
    assert short_names(["a/m.q4_0.gguf"]) == ["m.q4_0.gguf"]
    assert short_names(["m", "m.gguf"]) == ["m", "m.gguf"]


def test_numbers_are_said_in_as_many_digits_as_they_need() -> None:
    assert [significant(v) for v in (0.0, 0.00214, 3.14159e-5, 12.345, -0.5, None)] == [
        "0", "0.00214", "3.14×10⁻⁵", "12.3", "−0.500", "not measured"
    ]  # fmt: skip
    assert [percent(v, signed=True) for v in (0.0, 0.0123, -0.00012, 0.00001)] == [
        "0.00%",
        "+1.23%",
        "−0.012%",
        "+0.0010%",
    ]
    assert [size(v) for v in (12, 3 << 20, 5 << 30)] == ["12 B", "3.00 MiB", "5.00 GiB"]


def test_scales_keep_to_their_ends_and_ticks_are_round() -> None:
    scale = Scale(0, 10, 100, 200)
    assert [scale(value) for value in (-5, 0, 5, 99)] == [100, 100, 150, 200]
    assert decades(1e-3, 10) == pytest.approx([1e-3, 1e-2, 0.1, 1, 10])
    assert steps(0, 9.3, 5) == pytest.approx([0, 2, 4, 6, 8])


def test_a_meter_shows_what_a_gate_has_used_of_its_limit() -> None:
    assert "50.00% of the limit measured, 80.00% at the end" in str(
        gate_meter(Gate("kld", 0.05, 0.04, True, "", 0.025))
    )
    least = Gate("top1", 0.9, 0.92, True, "", 0.95)
    assert "50.00% of the limit measured, 80.00% at the end" in str(gate_meter(least))
    assert gate_meter(Gate("tokenizer", 0, 0.0, True, "")) is None


def browse(*words: str, profile: Path) -> subprocess.CompletedProcess[str]:
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--virtual-time-budget=2000",
    ]
    return subprocess.run([str(BROWSER), *flags, *words], capture_output=True, text=True, timeout=120)


def worst_case() -> str:
    """Two texts, five candidates with long names, one of them not run, 80 layers."""
    long = "a-rather-long-name-without-any-place-to-break-it" * 2
    found = [a_candidate(f"out/{long}{k}.gguf", k, texts=2, layers=80, alone=True, passed=k % 2 == 0) for k in range(4)]
    return render(
        a_report(*found, a_candidate(f"{long}.nan", 4, run=False), texts=2, reference=f"/models/{long}"), long
    )


@needs_browser
def test_no_page_scrolls_sideways_on_a_telephone_and_none_asks_for_anything(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(worst_case())
    # Headless windows are no narrower than 500 pixels, a frame is as narrow as it is told to be.
    (tmp_path / "phone.html").write_text(
        '<!doctype html><body><iframe id="f" src="report.html" width="375" height="800"></iframe><pre id="o"></pre><script>'
        'onload = () => { const d = document.getElementById("f").contentDocument, r = d.documentElement;'
        "document.getElementById('o').textContent = JSON.stringify({wide: r.scrollWidth, seen: r.clientWidth,"
        "fetched: d.defaultView.performance.getEntriesByType('resource').map(e => e.name),"
        "card: getComputedStyle(d.querySelector('.banner')).borderTopStyle}); }</script>"
    )
    log = tmp_path / "net.json"
    dead = ("--proxy-server=127.0.0.1:9", f"--log-net-log={log}", "--allow-file-access-from-files", "--dump-dom")
    found = browse(*dead, (tmp_path / "phone.html").as_uri(), profile=tmp_path / "profile")
    told = json.loads(str(re.search(r'<pre id="o">(\{.*?\})</pre>', found.stdout)[1]))  # type: ignore[index]
    assert told["card"] == "solid", "the style sheet was refused"
    assert told["fetched"] == []
    assert told["wide"] <= told["seen"] <= 375
