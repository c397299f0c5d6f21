"""The commands that run models: perplexity, validate, demo. `cli.py` adds them to the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .command_options import PATH, facts, measure_options, measuring, open_options, read_texts, speech
from .errors import UsageError
from .parameters import Percent, Real
from .terminal import printable, printable_lines
from .voice import Voice, progress


@click.command()
@click.argument("model", type=PATH)
@measuring
@facts
@speech
def perplexity(model: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Perplexity of MODEL on a text, one layer in memory at a time, by a named protocol."""
    from .api import perplexity as measure

    texts = read_texts(given)
    if len(texts) > 1:
        raise UsageError(f"{len(texts)} texts: perplexity is of one at a time")
    voice = Voice(as_json, quiet, verbose)
    with progress(voice, "steps") as display:
        found = measure(model, texts[0], measure_options(given), open_options(given), display)
    content = found.document()
    voice.document(content)
    spread = (
        ""
        if None in (content["low"], content["high"])
        else f" (95 % interval {content['low']:.4f} to {content['high']:.4f})"
    )
    voice.say(
        f"{printable(found.path)}: perplexity {found.perplexity:.4f}{spread}, protocol {content['protocol']}, "
        f"n_ctx {content['n_ctx']}, {content['chunks']} chunks, {content['tokens']} tokens scored"
    )


@click.command()
@click.argument("reference", type=PATH)
@click.argument("candidates", nargs=-1, required=True, type=PATH)
@click.option("--max-ppl-drift", type=Percent(), help="Gate on perplexity drift, as 1.5%; default by bits per weight.")
@click.option("--max-kld", type=Real(0), help="Gate on mean KL divergence, in nats.")
@click.option("--min-top1", type=Percent(), help="Gate on top-1 agreement, as 94%.")
@click.option("--max-kld-p999", type=Real(0), help="Gate on the KL divergence at the 99.9th percentile, in nats.")
@click.option("--min-top5", type=Percent(), help="Gate on how many of the five likeliest tokens stay, as 95%.")
@click.option("--gates", type=PATH, help="A TOML file of gates, and of a table in place of the default one.")
@click.option("--skip-noise-floor", is_flag=True, help="Do without the reference's own drift under bf16 activations.")
@measuring
@facts
@speech
def validate(
    reference: Path,
    candidates: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **given: Any,
) -> None:
    """What shrinking cost: drift of each CANDIDATE from REFERENCE, with intervals and gates. Exit 1 if one fails."""
    from .api import validate as compare
    from .validate.terminal import render

    voice = Voice(as_json, quiet, verbose)
    with progress(voice, "steps") as display:
        report = compare(reference, candidates, read_texts(given), measure_options(given), open_options(given), display)
    voice.document(report.document())
    voice.say(printable_lines(render(report)))
    sys.exit(0 if report.passed else 1)


@click.command()
@click.option(
    "--out",
    type=PATH,
    default=Path("smelt-demo"),
    show_default=True,
    help="Folder for its files; a former demo's are replaced.",
)
@click.option("--chunks", type=click.IntRange(2), default=40, show_default=True, help="Windows of held-out text.")
@speech
def demo(out: Path, chunks: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """The whole story on a small bundled model: convert, diff, quantize, validate. Exit 0 if it passes."""
    from .demo import demo as tell
    from .validate.terminal import render

    voice = Voice(as_json, quiet, verbose)
    with progress(voice, "steps") as display:
        result = tell(out, chunks, voice.say, display)
    voice.document(result.document())
    voice.say(printable_lines(render(result.report)))
    sys.exit(0 if result.report.passed else 1)
