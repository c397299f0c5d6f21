"""The files beside the weights that a Hugging Face folder carries, by name: copied byte for byte, never interpreted here."""

from __future__ import annotations

from pathlib import Path

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def read_side_files(folder: Path, names: tuple[str, ...] = SIDE_FILES) -> dict[str, bytes]:
    """{name: content} of those of `names` that the folder has."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
