"""A container of tensors that another package brings: how to tell it, open it and, where it can be written, lay one out.

    claims(path)             is the file or folder at `path` one of these?       looks at names and first bytes alone
    open(path)            -> Checkpoint(name, tensors, metadata, files)          headers only
    layout(specs, words)  -> {file name: FileLayout}                             a slot for every tensor; None: is only read

It holds what safetensors holds: tensors under Hugging Face's names and in its layouts, in files beside config.json and the
tokenizer's. Elements lie as they are, row-major and little-endian, at a place that is known before any is read or written;
`words` are a few strings that the container keeps, if it has a place for them, and gives back as `Checkpoint.metadata`.
A `Format` is an entry point in the group `smelt.formats`; `claims` is asked only of paths that no format of smelt is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import PluginError
from .checkpoint import Checkpoint, FileLayout, TensorSpec


@dataclass(frozen=True)
class Format:
    """A third party's container: see the module's docstring. `name` is what `--to` and `inspect` call it.

    `open` raises FormatError or InputError for what is not sound; `layout` ModelError for what it cannot hold.
    """

    name: str
    claims: Callable[[Path], bool]
    open: Callable[[Path], Checkpoint]
    layout: Callable[[Sequence[TensorSpec], Mapping[str, str]], Mapping[str, FileLayout]] | None = None


def format_problems(format_: Format) -> list[str]:
    """What of a `Format` cannot be, in sentences."""
    names = ["claims", "open", *(["layout"] if format_.layout is not None else [])]
    return [f"{name} is no function" for name in names if not callable(getattr(format_, name))]


def check_checkpoint(format_: Format, found: object) -> Checkpoint:
    """What `open` gave; PluginError where it is none."""
    if not isinstance(found, Checkpoint) or not found.tensors or not found.files:
        raise PluginError(
            f"{format_.name}: open gave {type(found).__name__}, wanted a Checkpoint with tensors and files"
        )
    return found


def check_layout(format_: Format, specs: Sequence[TensorSpec], files: Mapping[str, FileLayout]) -> None:
    """PluginError unless `files` have one slot for each of `specs`, inside its file and apart from all others."""
    slots = [(name, tensor) for name, layout in files.items() for tensor in layout.slots]
    if sorted(tensor for _, tensor in slots) != sorted(spec.name for spec in specs):
        raise PluginError(f"{format_.name}: its layout has not one slot for each tensor")
    sizes = {spec.name: spec.nbytes for spec in specs}
    for name, layout in files.items():
        spans = [(offset, offset + len(piece)) for offset, piece in layout.pieces]
        spans += [(offset, offset + sizes[tensor]) for tensor, offset in layout.slots.items()]
        reached = 0
        for start, stop in sorted(span for span in spans if span[0] != span[1]):
            if start < reached or stop > layout.nbytes:
                raise PluginError(
                    f"{format_.name}: its layout of {name} has pieces that overlap, or end beyond the file"
                )
            reached = stop
