"""The commands that run models: perplexity, validate, demo. `cli.py` adds them to the others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from .command_options import (
    PATH,
    check_output,
    discard_journal,
    facts,
    measure_options,
    measuring,
    open_options,
    read_texts,
    reporting,
    speech,
)
from .errors import UsageError
from .parameters import Percent, Real
from .report_files import check_reports, command_line, write_reports
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
    if len(texts) != 1:
        raise UsageError(f"{len(texts)} texts: perplexity is of one at a time: give --text FILE, or --token-ids FILE")
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
    discard_journal(given)


@click.command()
@click.argument("reference", type=PATH)
@click.argument("candidates", nargs=-1, type=PATH)
@click.option("--max-ppl-drift", type=Percent(), help="Gate on perplexity drift, as 1.5%; default by bits per weight.")
@click.option("--max-kld", type=Real(0), help="Gate on mean KL divergence, in nats.")
@click.option("--min-top1", type=Percent(), help="Gate on top-1 agreement, as 94%.")
@click.option("--max-kld-p999", type=Real(0), help="Gate on the KL divergence at the 99.9th percentile, in nats.")
@click.option("--min-top5", type=Percent(), help="Gate on how many of the five likeliest tokens stay, as 95%.")
@click.option("--gates", type=PATH, help="A TOML file of gates, and of a table in place of the default one.")
@click.option("--skip-noise-floor", is_flag=True, help="Do without the reference's own drift under bf16 activations.")
@click.option(
    "--attribute",
    is_flag=True,
    help="The KL divergence that each layer costs by itself, on 8 chunks: for L layers L * (L + 1) / 2 more passes of "
    "these through a layer, for each candidate.",
)
@click.option(
    "--save-reference",
    type=PATH,
    metavar="FILE",
    help="Keep what the reference says of the text, to be the REFERENCE of later runs; CANDIDATEs may then be left out.",
)
@click.option("--force", is_flag=True, help="Replace what is to be written if it exists (atomically).")
@reporting
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
    """What shrinking cost: drift of each CANDIDATE from REFERENCE, with intervals and gates. Exit 1 if one fails.

    REFERENCE is a model, or what one said of a text: a file that --save-reference wrote, or llama-perplexity's
    --kl-divergence-base. Those hold the tokens, so they need no --text.
    """
    from .api import validate as compare
    from .validate.terminal import render

    voice = Voice(as_json, quiet, verbose)
    check_output(given, given["save_reference"])
    check_reports(given, (reference, *candidates))
    with progress(voice, "steps") as display:
        report = compare(reference, candidates, read_texts(given), measure_options(given), open_options(given), display)
    voice.document(report.document())
    voice.say(printable_lines(render(report)))
    for path in write_reports(given, report, command_line(click.get_current_context())):
        voice.say(f"wrote {printable(str(path))}")
    discard_journal(given)
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
