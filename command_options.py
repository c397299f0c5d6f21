"""The options of the command line that several commands share, and what they mean to the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import UsageError
from .parameters import Real, Size

if TYPE_CHECKING:
    from .convert.options import OpenOptions
    from .quantize.choose import ChooseOptions
    from .validate.options import ValidateOptions
    from .validate.texts import Text

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
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors: the exit code is the answer."),
    click.option("-v", "--verbose", is_flag=True, help="Show every tensor, and a traceback above an error."),
)
facts = options(
    click.option("--tokenizer", type=PATH, help="The tokenizer.model or tokenizer.json to use."),
    click.option("--skip-tokenizer", is_flag=True, help="Do without the tokenizer: the weights alone."),
    click.option(
        "--pre", metavar="NAME", help="How a byte-level vocabulary cuts words, by the name that GGUF has for it."
    ),
    click.option(
        "--context-length",
        type=click.IntRange(1, 2**31 - 1),
        help="Tokens that the model was trained at; wins over its files.",
    ),
    click.option(
        "--rope-theta", type=Real(0, min_open=True), help="Base of the rotary frequencies; wins over the files."
    ),
    click.option(
        "--kv-heads",
        type=click.IntRange(1, 2**31 - 1),
        help="Key-value heads of a Meta model whose shards repeat them.",
    ),
)
writing = options(
    click.option("--force", is_flag=True, help="Replace TARGET if it exists (atomically)."),
    click.option("--dry-run", is_flag=True, help="Show what would be written, and its size; read no weights."),
    click.option("--source-digests", is_flag=True, help="Put the SHA-256 of every source file into the manifest."),
    click.option(
        "--threads", type=click.IntRange(1), help="Threads that encode; default: the CPUs this process may use."
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="What encodes: the CPU, or a card for the types that have a kernel there. The bytes are the same.",
    ),
)


measuring = options(
    click.option(
        "--protocol",
        type=click.Choice(["llamacpp", "gptq", "strided"]),
        help="How the text is cut into windows, and which tokens are scored; default: llamacpp, or a saved reference's.",
    ),
    click.option(
        "--text", "texts", multiple=True, metavar="[NAME=]FILE", help="UTF-8 text that the model was not trained on."
    ),
    click.option(
        "--token-ids", multiple=True, metavar="[NAME=]FILE", help="A JSON list or .npy of token ids in place of a text."
    ),
    click.option("--stride", type=click.IntRange(1), help="Tokens between the starts of windows (protocol strided)."),
    click.option("--ctx", "n_ctx", type=click.IntRange(4), help="Tokens of a window; default: the protocol's own."),
    click.option("--chunks", type=click.IntRange(1), help="Only the first N windows of the text."),
    click.option(
        "--max-ram",
        type=Size(),
        help="Memory for hidden states, which past it lie in a file; default: half of what is free. Each layer's weights "
        "come on top. A model writes (--generate) where its float32 weights fit into it; default for that: 4 GiB.",
    ),
    click.option(
        "--resume",
        type=PATH,
        metavar="FOLDER",
        help="Keep in FOLDER how far it came; the same command goes on from there. Removed when the report is out.",
    ),
    click.option(
        "--device",
        "compute",
        default="auto",
        show_default=True,
        type=click.Choice(["auto", "cpu", "cuda"]),
        help="What computes the layers: the CPU, or a card. Their sums differ by rounding; the report says which it was.",
    ),
    click.option("--threads", type=click.IntRange(1), help="Threads; default: the CPUs this process may use."),
)

reporting = options(
    click.option("--html", type=PATH, metavar="FILE", help="Write the report as one page that needs nothing else."),
    click.option("--markdown", type=PATH, metavar="FILE", help="Write the report as Markdown, for a model card."),
    click.option(
        "--generate",
        type=click.IntRange(0),
        metavar="N",
        help="Tokens that each model writes after a few fixed prompts, whole in memory; default: 32; 0: none.",
    ),
)

choosing = options(
    click.option("--pure", is_flag=True, help="The scheme's base type for every matrix."),
    click.option(
        "--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="Override by GGUF name; first wins."
    ),
    click.option("--output-tensor-type", metavar="TYPE", help="The type of output.weight (of the embedding if tied)."),
    click.option("--token-embedding-type", metavar="TYPE", help="The type of token_embd.weight."),
    click.option("--leave-output-tensor", is_flag=True, help="Keep output.weight as it is stored."),
    click.option("--imatrix", type=PATH, help="What llama-imatrix measured, .gguf or .dat: which columns matter."),
    click.option("--allow-fallback", is_flag=True, help="Let rows that do not divide into blocks take a wider type."),
)


def open_options(given: dict[str, Any]) -> OpenOptions:
    """What `facts` says."""
    from .convert.options import OpenOptions

    return OpenOptions(
        given["context_length"],
        given["rope_theta"],
        given["tokenizer"],
        given["skip_tokenizer"],
        given["kv_heads"],
        given["pre"],
    )


def choose_options(given: dict[str, Any]) -> ChooseOptions:
    """What `choosing` says."""
    from .quantize.choose import ChooseOptions

    return ChooseOptions(
        pure=given["pure"],
        allow_fallback=given["allow_fallback"],
        tensor_types=tuple(_override(text) for text in given["tensor_types"]),
        output_type=given["output_tensor_type"],
        embedding_type=given["token_embedding_type"],
        leave_output=given["leave_output_tensor"],
    )


def _override(text: str) -> tuple[str, str]:
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError(f"--tensor-type {text}: wanted REGEX=TYPE, such as attn_v=q6_k")
    return pattern, name


def measure_options(given: dict[str, Any]) -> ValidateOptions:
    """What `measuring` and the gates say."""
    from .api import default_threads
    from .validate.limits import TABLE, Limits, read_limits
    from .validate.options import ValidateOptions

    file = given.get("gates")
    limits, table = (Limits(), TABLE) if file is None else read_limits(file)
    said = Limits(*(given.get(name) for name in ("max_ppl_drift", "max_kld", "min_top1", "max_kld_p999", "min_top5")))
    return ValidateOptions(
        protocol=given["protocol"],
        n_ctx=given["n_ctx"],
        stride=given["stride"],
        chunks=given["chunks"],
        threads=given["threads"] or default_threads(),
        limits=limits.overridden_by(said),
        table=table,
        noise_floor=not given.get("skip_noise_floor", False),
        generate=ValidateOptions.generate if given.get("generate") is None else given["generate"],
        save_reference=given.get("save_reference"),
        overwrite=given.get("force", False),
        max_ram=given["max_ram"],
        resume=given["resume"],
        device=given["compute"],
        attribute=given.get("attribute", False),
    )


def discard_journal(given: dict[str, Any]) -> None:
    """After the report is out: what `--resume` kept is of no use any more."""
    from .validate.journal import discard

    if given["resume"] is not None:
        discard(given["resume"])


def read_texts(given: dict[str, Any]) -> list[Text]:
    """Every `--text` and `--token-ids`, under its name; none where none was given."""
    from .validate.texts import read_text, read_token_ids

    texts = [read_text(path, name) for name, path in map(_named, given["texts"])]
    return texts + [read_token_ids(path, name) for name, path in map(_named, given["token_ids"])]


def check_output(given: dict[str, Any], target: Path | None) -> None:
    """UsageError where what is to be written is one of the texts."""
    from .formats.target import check_sources

    if target is not None:
        check_sources(target, [path for _, path in map(_named, (*given["texts"], *given["token_ids"]))])


def _named(words: str) -> tuple[str, Path]:
    """NAME=FILE, or FILE alone, which bears its own name; a file whose name has a "=" in it is taken as it is."""
    name, equals, file = words.partition("=")
    if equals and name and file and not Path(words).exists():
        return name, Path(file)
    return Path(words).name, Path(words)
