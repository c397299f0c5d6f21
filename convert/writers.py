"""Every format that smelt writes, by name: four of its own, and those that plugins bring."""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .containers import third_party_format, third_party_formats
from .gguf_write import GGUF_WRITER
from .hugging_face_write import SAFETENSORS_WRITER, container_writer
from .meta_write import META_WRITER
from .metaseq_write import METASEQ_WRITER
from .writer import Writer

WRITERS = {writer.name: writer for writer in (META_WRITER, METASEQ_WRITER, SAFETENSORS_WRITER, GGUF_WRITER)}
FILE_SUFFIXES = (".gguf", ".safetensors", ".pth", ".pt", ".bin")


def writer_of(name: str) -> Writer:
    """The writer by its name; UsageError lists the ones there are."""
    if name in WRITERS:
        return WRITERS[name]
    found = third_party_format(name)
    if found is None:
        known = ", ".join((*WRITERS, *third_party_formats()))
        raise UsageError(f"--to {name}: smelt writes {known}")
    return container_writer(found)


def target_format(target: Path, to: str | None) -> str:
    """The format by `--to`, else by the target's suffix (a folder is safetensors); UsageError for another.

    PluginError where a plugin brings a format by a name of smelt's own.
    """
    if to is None:
        to = "gguf" if target.suffix.lower() == ".gguf" else "safetensors"
    else:
        third_party_format(to)
        to = writer_of(to).name
    if to != "gguf" and target.suffix.lower() in FILE_SUFFIXES:
        raise UsageError(f"{target}: a {to} target is a folder (weights, facts, tokenizer): name one without a suffix")
    return to
