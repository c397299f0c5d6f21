"""The command line: parses words, calls the library, prints. Nothing else in smelt prints.

Exit codes: 0 done or pass; 1 the answer is no; 2 usage; 3 bad input; 4 disk or permission; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import __version__
from .errors import InputError, SmeltError, StorageError, UsageError
from .parameters import Percent, Real, Size
from .terminal import ProgressDisplay, human, printable, printable_lines, table

if TYPE_CHECKING:
    from .convert.options import OpenOptions
    from .convert.plan import Plan
    from .validate.options import ValidateOptions

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)


def options(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Several click options as one decorator."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


speech = options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else."),
    click.option("-q", "--quiet", is_flag=True, help="No progress and no notes."),
    click.option("-v", "--verbose", is_flag=True, help="Every tensor, and a traceback where smelt itself fails."),
)
facts = options(
    click.option("--tokenizer", type=PATH, help="The tokenizer.model to use."),
    click.option("--skip-tokenizer", is_flag=True, help="Leave the tokenizer out; the weights alone are converted."),
    click.option("--context-length", type=click.IntRange(1, 2**31 - 1), help="Tokens of context, where the files do not say."),
    click.option("--rope-theta", type=Real(0, min_open=True), help="Base of the rotary frequencies."),
)
writing = options(
    click.option("--force", is_flag=True, help="Replace TARGET if it exists (atomically)."),
    click.option("--dry-run", is_flag=True, help="Plan and show every size; read no data, write nothing."),
    click.option(
        "--threads", type=click.IntRange(1), help="Threads that encode; default: the CPUs this process may use."
    ),
)


@dataclass(frozen=True)
class Voice:
    """How a command speaks."""

    as_json: bool
    quiet: bool
    verbose: bool

    def say(self, text: str) -> None:
        """A line for a person; silent under --json and -q."""
        if not (self.as_json or self.quiet):
            click.echo(text)

    def document(self, content: dict[str, Any]) -> None:
        """The JSON document, where one was asked for."""
        if self.as_json:
            click.echo(json.dumps(content, indent=2, allow_nan=False))


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
    found = look(path, _open_options(given))
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
@click.option("--to", type=click.Choice(["safetensors", "gguf"]), help="Format; default: from TARGET's suffix.")
@click.option("--dtype", default="source", show_default=True, type=click.Choice(["source", "f32", "f16", "bf16"]))
@click.option("--max-shard-size", type=Size(), default="5GB", show_default=True, help="Bytes of one safetensors file.")
@facts
@writing
@speech
def convert(source: Path, target: Path, to: str | None, dtype: str, max_shard_size: int, **given: Any) -> None:
    """Convert SOURCE to TARGET: bit-exact at the stored dtype, streaming, atomic."""
    from .api import convert_plan

    plan = convert_plan(
        source, target, to=to, dtype=dtype, max_shard_nbytes=max_shard_size, options=_open_options(given)
    )
    _carry_out(plan, given)


@cli.command()
@click.argument("source", type=PATH)
@click.argument("target", type=PATH)
@click.option("--scheme", required=True, help="q4_k_m, q8_0, q4_0, ... in llama.cpp's names, in any case.")
@click.option("--pure", is_flag=True, help="The scheme's base type for every matrix.")
@click.option(
    "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Override by GGUF name; first wins."
)
@click.option("--allow-fallback", is_flag=True, help="Let rows that do not divide into blocks take a wider type.")
@click.option("--allow-requantize", is_flag=True, help="Take a source that is quantized already, at a loss.")
@facts
@writing
@speech
def quantize(
    source: Path,
    target: Path,
    scheme: str,
    pure: bool,
    tensor_types: tuple[str, ...],
    allow_fallback: bool,
    allow_requantize: bool,
    **given: Any,
) -> None:
    """Shrink SOURCE to a quantized GGUF file in one pass, with no 16-bit file in between."""
    from .api import quantized_plan
    from .quantize.choose import ChooseOptions

    choices = ChooseOptions(pure, allow_fallback, tuple(_override(text) for text in tensor_types))
    plan = quantized_plan(
        source, target, scheme, allow_requantize=allow_requantize, choices=choices, options=_open_options(given)
    )
    _carry_out(plan, given)


@cli.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@facts
@speech
def diff(a: Path, b: Path, as_json: bool, quiet: bool, verbose: bool, **given: Any) -> None:
    """The same weights? Exit 0 where every value is equal across formats and shards, else 1."""
    from .api import diff as compare

    given["skip_tokenizer"] = True
    result = compare(a, b, _open_options(given))
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


measuring = options(
    click.option("--protocol", default="llamacpp", show_default=True, type=click.Choice(["llamacpp", "gptq"])),
    click.option("--ctx", "n_ctx", type=click.IntRange(4), help="Tokens of a window; default: the protocol's own."),
    click.option("--chunks", type=click.IntRange(1), help="Only the first N windows of the text."),
    click.option("--threads", type=click.IntRange(1), help="Threads; default: the CPUs this process may use."),
)


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
    with _progress(voice, "steps") as display:
        found = measure(model, _text(text), _measure_options(given), _open_options(given), display)
    content = found.document()
    voice.document(content)
    spread = "" if content["low"] is None else f" (95 % interval {content['low']:.4f} to {content['high']:.4f})"
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

    voice = Voice(as_json, quiet, verbose)
    with _progress(voice, "steps") as display:
        report = compare(reference, candidates, _text(text), _measure_options(given), _open_options(given), display)
    voice.document(report.document())
    voice.say(printable_lines(report.terminal_table()))
    sys.exit(0 if report.passed else 1)


@cli.command()
@click.option("--out", type=PATH, default=Path("smelt-demo"), show_default=True, help="Folder for the files it makes.")
@click.option("--chunks", type=click.IntRange(2), default=40, show_default=True, help="Windows of held-out text.")
@speech
def demo(out: Path, chunks: int, as_json: bool, quiet: bool, verbose: bool) -> None:
    """The whole story on a small bundled model: convert, diff, quantize, validate. Exit 0 if it passes."""
    from .demo import demo as tell

    voice = Voice(as_json, quiet, verbose)
    with _progress(voice, "steps") as display:
        result = tell(out, chunks, voice.say, display)
    voice.document(result.document())
    voice.say(printable_lines(result.report.terminal_table()))
    sys.exit(0 if result.report.passed else 1)


def _measure_options(given: dict[str, Any]) -> ValidateOptions:
    from .api import default_threads
    from .validate.gates import Limits
    from .validate.options import ValidateOptions

    limits = Limits(given.get("max_ppl_drift"), given.get("max_kld"), given.get("min_top1"))
    return ValidateOptions(
        protocol=given["protocol"],
        n_ctx=given["n_ctx"],
        chunks=given["chunks"],
        threads=given["threads"] or default_threads(),
        limits=limits,
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 at byte {error.start}: save it as UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


@contextmanager
def _progress(voice: Voice, unit: str) -> Iterator[ProgressDisplay]:
    display = ProgressDisplay(quiet=voice.quiet, unit=unit)
    try:
        yield display
    finally:
        display.close()


def _open_options(given: dict[str, Any]) -> OpenOptions:
    from .convert.options import OpenOptions

    return OpenOptions(given["context_length"], given["rope_theta"], given["tokenizer"], given["skip_tokenizer"])


def _override(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor-type {text}: wanted REGEX=TYPE, such as attn_v=q6_k")
    return pattern, name


def _carry_out(plan: Plan, given: dict[str, Any]) -> None:
    """Run a plan, or show it, and say what came of it."""
    from .api import default_threads
    from .convert.run import RunOptions, run

    voice = Voice(given["as_json"], given["quiet"], given["verbose"])
    if given["dry_run"]:
        files = [str(plan.target / name if plan.folder else plan.target) for name in plan.files]
        seconds, notes = 0.0, plan.notes
    else:
        with _progress(voice, "B") as display:
            result = run(plan, RunOptions(given["threads"] or default_threads(), given["force"]), display)
        files, seconds, notes = [str(path) for path in result.files], result.seconds, result.notes
    voice.document(
        {
            "target": str(plan.target),
            "files": files,
            "bytes": plan.nbytes,
            "tensors": len(plan.steps),
            "seconds": seconds,
            "schemes": plan.schemes,
            "notes": list(notes),
            "dry_run": given["dry_run"],
        }
    )
    if voice.verbose:
        voice.say(table([[printable(step.name), step.scheme.name] for step in plan.steps]))
    counts = ", ".join(f"{count} {name}" for name, count in plan.schemes.items())
    done = "would write" if given["dry_run"] else f"wrote in {seconds:.1f} s"
    voice.say(f"{printable(str(plan.target))}: {done}: {human(plan.nbytes)}, {len(plan.steps)} tensors ({counts})")
    for note in notes:
        voice.say(printable(f"note: {note}"))


def main() -> None:
    """The console script: every expected failure is one line on stderr and an exit code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        sys.exit(2)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _fail("interrupted; the target is as it was", 130)
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
