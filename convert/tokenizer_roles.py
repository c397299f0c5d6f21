"""Roles that a token has by its name alone: end of turn, end of message, the three marks of infilling.

    eot  eom  fim_pre  fim_suf  fim_mid          GGUF: tokenizer.ggml.{role}_token_id

Names: llama.cpp, llama-vocab.cpp, which looks for them too where a file names no id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..formats.sentencepiece import Piece

ROLES = ("eot", "eom", "fim_pre", "fim_suf", "fim_mid")

# the first of a role's names that the vocabulary has is the one
_NAMES: Mapping[str, tuple[str, ...]] = {
    "eot": ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>", "\u2581<EOT>"),
    "eom": ("<|eom_id|>",),
    "fim_pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "\u2581<PRE>"),
    "fim_suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "\u2581<SUF>"),
    "fim_mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "\u2581<MID>"),
}


def special_roles(pieces: Sequence[Piece]) -> dict[str, int]:
    """{role: id} of the roles that these pieces have."""
    wanted = {name for names in _NAMES.values() for name in names}
    ids = {text: i for i, (text, _, _) in enumerate(pieces) if text in wanted}
    found = {role: next((ids[name] for name in names if name in ids), None) for role, names in _NAMES.items()}
    return {role: id_ for role, id_ in found.items() if id_ is not None}
