"""How a command speaks: lines for a person, one JSON document for a program; and how it carries out plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from .terminal import ProgressDisplay, human, printable, table

if TYPE_CHECKING:
    from .convert.plan import Plan
    from .convert.run import RunResult


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


@contextmanager
def progress(voice: Voice, unit: str) -> Iterator[ProgressDisplay]:
    """A display that is gone when the block ends."""
    display = ProgressDisplay(quiet=voice.quiet, unit=unit)
    try:
        yield display
    finally:
        display.close()


def carry_out(plans: Sequence[Plan], given: dict[str, Any], context: dict[str, Any] | None = None) -> None:
    """Run plans in one pass, or show them, and say what came of it.

    The document is a plan's own, or a list of them under `targets` where there are several; `context` goes before it.
    """
    from .api import default_threads
    from .convert.device import check_device
    from .convert.run import RunOptions, run_all
    from .formats.target import check_free_space, check_target

    voice = Voice(given["as_json"], given["quiet"], given["verbose"])
    results: Sequence[RunResult | None] = [None] * len(plans)
    if given["dry_run"]:
        check_device(given["device"])
        for plan in plans:
            check_target(plan.target, folder=plan.folder, force=given["force"], sources=plan.inputs)
            check_free_space(plan.target.parent, plan.nbytes)
    else:
        with progress(voice, "B") as display:
            threads = given["threads"] or default_threads()
            results = run_all(
                plans,
                RunOptions(threads, given["force"], source_digests=given["source_digests"], device=given["device"]),
                display,
            )
    documents = [_outcome(plan, result) for plan, result in zip(plans, results, strict=True)]
    before = dict(context or {})
    content = documents[0] if len(documents) == 1 else {"targets": documents}
    notes = [*before.get("notes", []), *content.get("notes", [])]
    voice.document({**before, **content, **({"notes": notes} if notes or len(documents) == 1 else {})})
    for plan, document in zip(plans, documents, strict=True):
        _tell(voice, plan, document)


def _outcome(plan: Plan, result: RunResult | None) -> dict[str, Any]:
    """The document of one plan; without a result it was a dry run."""
    folder = plan.target if plan.folder else plan.target.parent
    planned = [str(folder / name) for name in [*plan.files, plan.manifest_name]]
    return {
        "target": str(plan.target),
        "files": planned if result is None else [str(path) for path in result.files],
        "bytes": plan.nbytes,
        "tensors": len(plan.steps),
        "seconds": 0.0 if result is None else result.seconds,
        "schemes": plan.schemes,
        "notes": list(plan.notes if result is None else result.notes),
        "dry_run": result is None,
    }


def _tell(voice: Voice, plan: Plan, document: dict[str, Any]) -> None:
    if voice.verbose:
        voice.say(table([[printable(step.name), step.scheme.name] for step in plan.steps]))
    counts = ", ".join(f"{count} {name}" for name, count in plan.schemes.items())
    done = "would write" if document["dry_run"] else f"wrote in {document['seconds']:.1f} s"
    voice.say(f"{printable(str(plan.target))}: {done}: {human(plan.nbytes)}, {len(plan.steps)} tensors ({counts})")
    for note in document["notes"]:
        voice.say(printable(f"note: {note}"))


def tell_result(voice: Voice, result: RunResult) -> None:
    """A run that had no plan to show."""
    voice.document(
        {
            "target": str(result.target),
            "files": [str(path) for path in result.files],
            "bytes": result.nbytes,
            "tensors": result.tensors,
            "seconds": result.seconds,
            "schemes": result.schemes,
            "notes": list(result.notes),
            "dry_run": False,
        }
    )
    voice.say(f"{printable(str(result.target))}: wrote in {result.seconds:.1f} s: {human(result.nbytes)}")
    for note in result.notes:
        voice.say(printable(f"note: {note}"))
