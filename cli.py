"""The command line: parses words, calls the library, prints. Nothing else in smelt prints.

Exit codes: 0 done or pass; 1 the answer is no; 2 usage; 3 bad input; 4 disk, permission or the card; 130 interrupted.
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
    open_options,
    speech,
    writing,
)
from .errors import InputError, SmeltError, StorageError, UsageError
from .measure_commands import demo, perplexity, validate
from .parameters import Percent, Size
from .terminal import binary, human, printable, table
from .voice import Voice, carry_out, progress, tell_result

to_format = click.option(
    "--to",
    metavar="FORMAT",
    help="meta, metaseq, safetensors, gguf, or a plugin's; default: gguf where TARGET ends in .gguf, else safetensors.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="smelt")
def cli() -> None:
    """Turn raw language-model weights into weights that people can run, and prove that they still work.

    SOURCE is a Meta folder (consolidated.NN.pth), a Hugging Face folder (safetensors or .bin) or a GGUF file.
    """


@cli.command()
@click.argument("path", type=PATH)
@facts
@speech
def inspect(path: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """What is in PATH: format, family, tensors, dtypes, sizes, tokenizer, problems. Exit 1 if there are problems."""
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
    sys.exit(1 if found.problems else 0)


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@to_format
@click.option(
    "--dtype",
    default="source",
    show_default=True,
    type=click.Choice(["source", "f32", "f16", "bf16"]),
    help="Type of the matrices; source: as stored.",
)
@click.option(
    "--max-shard-size",
    type=Size(),
    help="Bytes of one safetensors file (5GB unless said), or of one part of a GGUF folder (--to gguf).",
)
@click.option(
    "--shards", "n_shards", type=click.IntRange(1, 100), help="Shards of a Meta folder; default: as it was published."
)
@facts
@writing
@speech
def convert(source: Path, target: Path, to: str | None, dtype: str, **given: Any) -> None:
    """Convert SOURCE to TARGET: bit-exact at the stored dtype, streaming, atomic."""
    from .api import convert_plan

    plan = convert_plan(
        source,
        target,
        to=to,
        dtype=dtype,
        max_shard_nbytes=given["max_shard_size"],
        n_shards=given["n_shards"],
        options=open_options(given),
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
    help="q4_k_m, q8_0, ... as llama.cpp names them, or a plugin's; may be repeated.",
)
@choosing
@click.option("--allow-requantize", is_flag=True, help="Take a source that is quantized already, at a loss.")
@facts
@writing
@speech
def quantize(source: Path, target: Path, schemes: tuple[str, ...], allow_requantize: bool, **given: Any) -> None:
    """Shrink SOURCE to a quantized GGUF file in one pass, with no 16-bit file in between.

    TARGET ends in .gguf; for a plugin's scheme it is a folder. Several --scheme share the pass: TARGET must then hold {scheme},
    as in model.{scheme}.gguf.
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
@click.option(
    "--tolerance",
    type=Percent(),
    default=0.0,
    help="Relative error of a tensor that still counts as equal, as 1%; default: every bit counts.",
)
@facts
@speech
def diff(a: Path, b: Path, tolerance: float, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """The same weights? Exit 0 where every value is equal across formats and shards, else 1."""
    from .api import diff as compare

    given["skip_tokenizer"] = True
    result = compare(a, b, open_options(given), tolerance)
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
@click.argument("base", type=PATH)
@click.argument("target", type=PATH)
@click.option("--lora", type=PATH, metavar="FOLDER", help="A LoRA or DoRA adapter as peft saved it.")
@click.option(
    "--delta", type=PATH, metavar="FOLDER", help="A delta: added in float32 or fp16 (its dtype), or XORed files."
)
@to_format
@click.option(
    "--dtype",
    default="source",
    show_default=True,
    type=click.Choice(["source", "f32", "f16", "bf16"]),
    help="Type of the matrices; source: the base's under --lora, the delta's under --delta.",
)
@click.option(
    "--no-integrity-check",
    is_flag=True,
    help="Take a delta like Alpaca's whatever its published recipe says of the sum.",
)
@facts
@writing
@speech
def merge(
    base: Path, target: Path, lora: Path | None, delta: Path | None, to: str | None, dtype: str, **given: Any
) -> None:
    """Merge an adapter, or a published delta, into BASE and write TARGET: streaming, every tensor accounted for."""
    from .api import merge as carry
    from .api import merge_plan
    from .convert.xor import is_xor

    if delta is not None and lora is None and is_xor(delta):
        voice = Voice(given["as_json"], given["quiet"], given["verbose"])
        if given["dry_run"] or to not in (None, "safetensors") or dtype != "source":
            raise UsageError("XORed files make the folder that they stand for: leave out --to, --dtype and --dry-run")
        with progress(voice, "B") as display:
            result = carry(base, target, delta=delta, force=given["force"], progress=display)
        tell_result(voice, result)
        return
    plan = merge_plan(
        base,
        target,
        delta=delta,
        lora=lora,
        to=to,
        dtype=dtype,
        integrity_check=not given["no_integrity_check"],
        options=open_options(given),
    )
    carry_out([plan], given)


@cli.command()
@click.argument("path", type=PATH)
@click.option("--strict", is_flag=True, help="Fail files of which no digest is known, too.")
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the CPUs this process may use.")
@speech
def verify(path: Path, strict: bool, threads: int | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Are the files what they should be? By checklist.chk, SHA256SUMS, the manifest, published digests. Exit 1 if not."""
    from .api import verify as look

    voice = Voice(as_json, quiet, verbose)
    with progress(voice, "B") as display:
        found = look(path, threads, display)
    voice.document(found.document())
    voice.say(table([[check.status, printable(check.file), printable(check.reason)] for check in found.files]))
    voice.say(f"{found.count('ok')} ok, {found.count('bad')} bad, {found.count('unknown')} unknown")
    sys.exit(1 if found.count("bad") or (strict and found.count("unknown")) else 0)


for command in (perplexity, validate, demo):
    cli.add_command(command)


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
