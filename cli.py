"""The command line: parses words, calls the library, prints. Nothing else in smelt prints.

Exit codes: 0 done or pass; 1 the answer is no; 2 usage; 3 bad input; 4 disk or permission; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from . import __version__
from .command_options import (
    PATH,
    choose_options,
    choosing,
    facts,
    measure_options,
    measuring,
    open_options,
    read_text,
    speech,
    writing,
)
from .errors import InputError, SmeltError, StorageError, UsageError
from .parameters import Percent, Real, Size
from .terminal import binary, human, printable, printable_lines, table
from .voice import Voice, carry_out, progress


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="smelt")
def cli() -> None:
    """Turn raw language-model weights into weights that people can run, and prove that they still work.

    SOURCE is a Meta folder (consolidated.NN.pth), a Hugging Face folder (safetensors) or a GGUF file.
    """


@cli.command()
@click.argument("path", type=PATH)
@facts
@speech
def inspect(path: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """What is in PATH: format, family, tensors, dtypes, sizes, tokenizer, problems."""
    from .convert.inspect import inspect as look

    voice = Voice(as_json, quiet, verbose)
    found = look(path, open_options(given))
    voice.document(found.document())
    shown = found.tensors if verbose or len(found.tensors) <= 24 else found.tensors[:12]
    rows = [[printable(t.name), "x".join(map(str, t.shape)), t.dtype, human(t.nbytes)] for t in shown]
    voice.say(
        f"{printable(str(path))}: {found.format}, {found.architecture or 'unknown architecture'}, "
        f"{found.parameters:,} parameters, {human(found.nbytes)} in {len(found.files)} files, {len(found.tensors)} tensors"
    )
    if found.tokenizer is not None:
        voice.say(f"tokenizer: {found.tokenizer.kind}, {len(found.tokenizer.pieces)} pieces")
    voice.say(table(rows, right=(1, 3)))
    if len(shown) < len(found.tensors):
        voice.say(f"... and {len(found.tensors) - len(shown)} more (-v shows all)")
    for line in (*(f"problem: {p}" for p in found.problems), *(f"note: {n}" for n in found.notes)):
        voice.say(printable(line))


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--to", type=click.Choice(["safetensors", "gguf"]), help="Default: gguf where TARGET ends in .gguf.")
@click.option(
    "--dtype",
    default="source",
    show_default=True,
    type=click.Choice(["source", "f32", "f16", "bf16"]),
    help="Type of the matrices; source: as stored.",
)
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Bytes of one safetensors file.")
@facts
@writing
@speech
def convert(source: Path, target: Path, to: str | None, dtype: str, max_shard_size: int, **given: Any) -> None:
    """Convert SOURCE to TARGET: bit-exact at the stored dtype, streaming, atomic."""
    from .api import convert_plan

    plan = convert_plan(
        source, target, to=to, dtype=dtype, max_shard_nbytes=max_shard_size, options=open_options(given)
    )
    carry_out([plan], given)


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option(
    "--scheme",
    "schemes",
    required=True,
    multiple=True,
    help="q4_k_m, q8_0, ... as llama.cpp names them; may be repeated.",
)
@choosing
@click.option("--allow-requantize", is_flag=True, help="Take a source that is quantized already, at a loss.")
@facts
@writing
@speech
def quantize(source: Path, target: Path, schemes: tuple[str, ...], allow_requantize: bool, **given: Any) -> None:
    """Shrink SOURCE to a quantized GGUF file in one pass, with no 16-bit file in between.

    TARGET ends in .gguf. Several --scheme share the pass: TARGET must then hold {scheme}, as in model.{scheme}.gguf.
    """
    from .api import quantized_plans

    plans = quantized_plans(
        source,
        target,
        schemes,
        imatrix=given["imatrix"],
        allow_requantize=allow_requantize,
        choices=choose_options(given),
        options=open_options(given),
    )
    carry_out(plans, given)


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH, required=False)
@click.option("--vram", type=Size(), required=True, help="Memory that may be used, as 48GiB or 24GB.")
@click.option("--context", type=click.IntRange(1, 2**31 - 1), required=True, help="Tokens that the KV cache must hold.")
@click.option(
    "--kv-dtype",
    default="f16",
    show_default=True,
    type=click.Choice(["f32", "f16", "q8_0", "q4_0"]),
    help="Type of the KV cache.",
)
@click.option("--vocab-size", type=click.IntRange(1, 2**31 - 1), help="For params.json alone, where nothing tells it.")
@choosing
@facts
@writing
@speech
def fit(source: Path, target: Path | None, vram: int, context: int, kv_dtype: str, **given: Any) -> None:
    """Make the best scheme of SOURCE that fits a card. Exit 1 if none does.

    --dry-run shows the table; of a Meta folder it needs params.json alone.
    """
    from .api import fit as size_up
    from .api import quantized_plans

    if target is None and not given["dry_run"]:
        raise UsageError("TARGET is missing: name the GGUF file to make, or say --dry-run")
    found = size_up(
        source,
        vram,
        context,
        kv_dtype=kv_dtype,
        dry_run=given["dry_run"],
        vocab_size=given["vocab_size"],
        imatrix=given["imatrix"],
        choices=choose_options(given),
        options=open_options(given),
    )
    voice = Voice(given["as_json"], given["quiet"], given["verbose"])
    shown = [c for c in found.choices if voice.verbose or not c.reason or given["dry_run"]]
    rows = [["scheme", "file", "KV", "compute", "total", ""]]
    for c in shown:
        sizes = [binary(n) for n in (c.file_nbytes, c.kv_nbytes, c.compute_nbytes, c.total_nbytes)]
        mark = "<- the pick" if c is found.pick else c.reason or ("fits" if c.fits else "too large")
        rows.append([c.scheme, *sizes, mark])
    voice.say(table(rows, right=(1, 2, 3, 4)))
    for note in found.notes:
        voice.say(printable(f"note: {note}"))
    if found.pick is None:
        voice.document(found.document())
        click.echo(f"smelt: {found.why_none()}", err=True)
        sys.exit(1)
    if given["dry_run"] or target is None:
        voice.document(found.document())
        return
    plans = quantized_plans(
        source,
        target,
        [found.pick.scheme],
        imatrix=given["imatrix"],
        choices=choose_options(given),
        options=open_options(given),
    )
    carry_out(plans, given, found.document())


@cli.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@facts
@speech
def diff(a: Path, b: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """The same weights? Exit 0 where every value is equal across formats and shards, else 1."""
    from .api import diff as compare

    given["skip_tokenizer"] = True
    result = compare(a, b, open_options(given))
    voice = Voice(as_json, quiet, verbose)
    voice.document(result.document())
    shown = result.different if verbose else result.different[:20]
    for difference in shown:
        voice.say(printable(f"{difference.name}: {difference.reason}"))
    if len(shown) < len(result.different):
        voice.say(f"... and {len(result.different) - len(shown)} more (-v shows all)")
    verdict = "equal" if result.equal else f"{len(result.different)} differ"
    voice.say(f"{result.tensors} tensors compared: {verdict}")
    sys.exit(0 if result.equal else 1)


@cli.command()
@click.argument("model", type=PATH)
@click.option("--text", required=True, type=PATH, help="UTF-8 text that the model was not trained on.")
@measuring
@facts
@speech
def perplexity(model: Path, text: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """Perplexity of MODEL on a text, one layer in memory at a time, by a named protocol."""
    from .api import perplexity as measure

    voice = Voice(as_json, quiet, verbose)
    with progress(voice, "steps") as display:
        found = measure(model, read_text(text), measure_options(given), open_options(given), display)
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


@cli.command()
@click.argument("reference", type=PATH)
@click.argument("candidates", nargs=-1, required=True, type=PATH)
@click.option("--text", required=True, type=PATH, help="UTF-8 text that the model was not trained on.")
@click.option("--max-ppl-drift", type=Percent(), help="Gate on perplexity drift, as 1.5%; default by bits per weight.")
@click.option("--max-kld", type=Real(0), help="Gate on mean KL divergence, in nats.")
@click.option("--min-top1", type=Percent(), help="Gate on top-1 agreement, as 94%.")
@measuring
@facts
@speech
def validate(
    reference: Path,
    candidates: tuple[Path, ...],
    text: Path,
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
        report = compare(reference, candidates, read_text(text), measure_options(given), open_options(given), display)
    voice.document(report.document())
    voice.say(printable_lines(render(report)))
    sys.exit(0 if report.passed else 1)


@cli.command()
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


def main() -> None:
    """The console script: every expected failure is one line on stderr and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted: nothing was left half-written", 130)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SmeltError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", StorageError.exit_code)
    except MemoryError:
        _fail("out of memory: use fewer --threads", InputError.exit_code)


def _fail(message: str, code: int) -> None:
    """One line, the traceback above it where -v asks, and out."""
    if {"-v", "--verbose"} & set(sys.argv):
        traceback.print_exc()
    sys.stderr.write(f"smelt: error: {printable(message)}\n")
    sys.exit(code)
