"""The reports that `smelt validate` writes into files, and the command line that stands in them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .command_options import check_output
from .errors import UsageError

if TYPE_CHECKING:
    from .validate.report import ValidationReport

# Options that say how to speak, where to write and how fast: the same numbers come without them.
_UNSAID = {"as_json", "quiet", "verbose", "html", "markdown", "force", "resume", "save_reference", "threads"}


def check_reports(given: dict[str, Any], models: Sequence[Path]) -> None:
    """Before any work: UsageError where a report cannot be written, would replace an input, or exists without --force."""
    from .formats.target import check_target

    outputs = [given[name] for name in ("html", "markdown", "save_reference") if given[name] is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UsageError(f"{outputs[-1]}: is to be written twice: give every output its own name")
    for path in (given["html"], given["markdown"]):
        if path is not None:
            check_target(path, folder=False, force=given["force"], sources=models)
            check_output(given, path)


def write_reports(given: dict[str, Any], report: ValidationReport, command: str) -> list[Path]:
    """Write what was asked for, each file whole or not at all; the files written."""
    from .formats.transaction import write_atomically

    contents: dict[Path, str] = {}
    if given["html"] is not None:
        from .validate.html import render as page

        contents[given["html"]] = page(report, command)
    if given["markdown"] is not None:
        from .validate.markdown import render as card

        contents[given["markdown"]] = card(report, command)
    for path, content in contents.items():
        # A file name that is no Unicode has surrogates in it, which UTF-8 has not.
        write_atomically(path, content.encode("utf-8", "replace"), force=given["force"])
    return list(contents)


def command_line(context: click.Context) -> str:
    """The command as it was given, ready for a shell; without the options that change no number."""
    words = ["smelt", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            words += [str(each) for each in value] if isinstance(value, tuple) else [str(value)]
        elif name not in _UNSAID and context.get_parameter_source(name) == ParameterSource.COMMANDLINE:
            option = max(parameter.opts, key=len)
            given = value if parameter.multiple else (value,)
            words += [word for each in given for word in ((option,) if each is True else (option, str(each)))]
    return shlex.join(words)
