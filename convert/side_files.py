"""The files beside the weights that a Hugging Face folder carries, by name: copied byte for byte, never interpreted here."""

from __future__ import annotations

from pathlib import Path

GENERATION_CONFIG = "generation_config.json"
SIDE_FILES = (
    GENERATION_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "gpt2-vocab.json",  # metaseq's, where dict.txt gives its pieces other ids
    "dict.txt",
)
WITHOUT_VOCABULARY = (GENERATION_CONFIG,)  # what goes along even where the tokenizer is another, or left out


def read_side_files(folder: Path, names: tuple[str, ...] = SIDE_FILES) -> dict[str, bytes]:
    """{name: content} of those of `names` that the folder has."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
