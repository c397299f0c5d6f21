"""Stored tensors of any dialect -> canonical tensors: names matched, shapes checked, rotary rows reordered, the head resolved.

The three readers (meta, hugging_face, gguf) differ in how they find tensors and facts; this is what they share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ModelError, quoted
from .architecture import Dialect, Family, Match, match_names, missing_names, real_number, whole_number
from .layouts import pairs_to_halves
from .model import Assumption, Config, LazyTensor

WHOLE_NUMBERS = frozenset(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"))
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def canonical_config(family: Family, facts: Mapping[str, Any], where: str) -> Config:
    """`facts` under Hugging Face keys, completed by what follows from them. ModelError where the family cannot be."""
    config: Config = {
        "architectures": [family.hugging_face_class],
        "model_type": family.model_type,
        **family.constants,
        **{key: value for key, value in facts.items() if value is not None},
    }
    optional = {"head_dim", "num_key_value_heads", "max_position_embeddings"}
    keys = [fact.key for fact in family.facts if fact.key not in optional]
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ModelError(f"{where}: leaves out {', '.join(missing)}: facts about a model are never guessed")
    for fact in family.facts:
        if fact.key in config:
            (whole_number if fact.type == "u32" else real_number)(config[fact.key], f"{where}: {fact.key}")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if not isinstance(config.get("tie_word_embeddings", False), bool):
        raise ModelError(
            f"{where}: tie_word_embeddings is {quoted(config['tie_word_embeddings'])}, wanted true or false"
        )
    try:
        json.dumps(config, allow_nan=False)
    except (ValueError, RecursionError):
        raise ModelError(f"{where}: holds NaN, infinity or endless nesting, which no config can") from None
    problems = family.checks(config)
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}")
    return config


def assemble(
    family: Family, dialect: Dialect, stored: Mapping[str, LazyTensor], config: Config, where: str
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """-> ({canonical name: tensor}, {canonical name: stored name}) in the family's order.

    ModelError lists every name without a place, every missing tensor and every wrong shape.
    """
    matches = match_names(family, dialect, stored, where)
    n_layers = int(config["num_hidden_layers"])
    if n_layers > len(stored):
        raise ModelError(f"{where}: says {n_layers} layers, yet there are {len(stored)} tensors")
    extra = sorted(name for name, match in matches.items() if match.layer is not None and match.layer >= n_layers)
    if extra:
        raise ModelError(f"{where}: the model has {n_layers} layers, yet there are tensors of more: {', '.join(extra)}")
    missing = missing_names(family, matches.values(), n_layers, dialect)
    if missing:
        raise ModelError(f"{where}: {len(missing)} tensors are missing: {', '.join(missing)}")
    sizes = {
        **{key: value for key, value in config.items() if isinstance(value, int)},
        "q_rows": config["num_attention_heads"] * config["head_dim"],
        "kv_rows": config["num_key_value_heads"] * config["head_dim"],
    }
    wrong = []
    for name, match in matches.items():
        wanted = tuple(sizes[key] for key in match.row.shape)
        if stored[name].shape != wanted:
            wrong.append(f"{name} is {list(stored[name].shape)}, wanted {list(wanted)}")
    if wrong:
        raise ModelError(f"{where}: the shapes do not fit the config: {'; '.join(wrong)}")
    whole = [f"{name} ({stored[name].dtype})" for name in matches if stored[name].dtype.name in WHOLE_NUMBERS]
    if whole:
        raise ModelError(f"{where}: {len(whole)} weights are whole numbers, wanted floats: {', '.join(whole)}")
    order = {row.canonical: position for position, row in enumerate(family.rows)}
    last = order[HEAD] if HEAD in order else len(order)

    def place(item: tuple[str, Match]) -> tuple[int, int, int]:
        row, layer = item[1].row, item[1].layer
        position = order[row.canonical]
        group = 1 if layer is not None else (0 if position == 0 else 2)
        return group, layer or 0, min(position, last)

    tensors: dict[str, LazyTensor] = {}
    names: dict[str, str] = {}
    for name, match in sorted(matches.items(), key=place):
        canonical = match.name("canonical")
        tensor = replace(stored[name], name=canonical)
        if match.row.rotary is not None and dialect != "canonical":
            tensor = pairs_to_halves(tensor, int(config[match.row.rotary]))
        tensors[canonical] = tensor
        names[canonical] = name
    return tensors, names


def resolve_head(
    tensors: dict[str, LazyTensor], config: Config, where: str, *, absent_means_tied: bool
) -> tuple[Assumption, ...]:
    """Decide once whether the head is the embedding, and make `tensors` and `config` say so.

    A config that ties drops a stored head and assumes that its bytes are the embedding's; without a stored head the model
    is tied where the format says so, else ModelError.
    """
    tied = bool(config.get("tie_word_embeddings", False))
    if HEAD not in tensors:
        if not (tied or absent_means_tied):
            raise ModelError(
                f"{where}: {HEAD} is missing and the config does not tie it to the embedding: the download is incomplete, "
                "or config.json lacks tie_word_embeddings"
            )
        config["tie_word_embeddings"] = True
        return ()
    config["tie_word_embeddings"] = tied
    if not tied:
        return ()
    head = tensors.pop(HEAD)
    return (
        Assumption(
            head,
            tensors[EMBEDDING],
            f"{where}: tie_word_embeddings is true, yet {HEAD} differs from the embedding: set it to false in config.json "
            "to keep the head",
        ),
    )
