"""Stored tensors of any dialect <-> canonical tensors: names matched, shapes checked, layouts undone, the head resolved.

The readers (meta, hugging_face, gguf) differ in how they find tensors and facts; this is what they share. `lay_out` is the
way back, for every writer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..dtypes import Shape
from ..errors import ModelError, UsageError, quoted
from .architecture import (
    Dialect,
    Family,
    Match,
    match_names,
    missing_names,
    parts_of,
    real_number,
    whole_number,
)
from .layouts import part_of
from .model import Assumption, Config, LazyTensor
from .options import OpenOptions

WHOLE_NUMBERS = frozenset(("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"))
LATER = frozenset(
    ("head_dim", "num_key_value_heads", "max_position_embeddings")
)  # follow from others, or are asked for
MOST_EXPERTS = 1 << 16
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def canonical_config(family: Family, facts: Mapping[str, Any], where: str) -> Config:
    """`facts` under Hugging Face keys, completed by what follows from them. ModelError where the family cannot be."""
    config: Config = {
        "architectures": [family.hugging_face_class],
        "model_type": family.model_type,
        **{key: None for key, value in facts.items() if value is None and key not in LATER},
        **family.constants,
        **{key: value for key, value in facts.items() if value is not None},
    }
    keys = [fact.key for fact in family.facts if not fact.optional and fact.key not in LATER]
    missing = [key for key in keys if config.get(key) is None]
    if missing:
        raise ModelError(f"{where}: leaves out {', '.join(missing)}: facts about a model are never guessed")
    for fact in family.facts:
        if fact.key in config and not (fact.optional and config[fact.key] is None):
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


def said_by_hand(
    family: Family,
    dialect: Dialect,
    facts: Mapping[str, Any],
    stored: Mapping[str, LazyTensor],
    options: OpenOptions,
    where: str,
) -> dict[str, Any]:
    """`facts` with those that the user says in their place.

    UsageError for a context that the model's table of positions does not have, and for angles in a model that turns nothing.
    """
    said = dict(facts)
    if options.context_length is not None:
        said["max_position_embeddings"] = options.context_length
        row = next((row for row in family.rows if row.role == "position_embd"), None)
        table = None if row is None else stored.get(str(getattr(row, dialect)))
        if row is not None and table is not None and table.shape:
            wanted = family.sizes(said)[row.shape[0]]
            if table.shape[0] != wanted:
                raise UsageError(
                    f"{where}: --context-length {options.context_length}: the model has a table of positions, which holds "
                    f"{options.context_length - wanted + table.shape[0]}: leave the option out"
                )
    if options.rope_theta is not None:
        if not family.says("rope_theta"):
            raise UsageError(f"{where}: --rope-theta: {family.name} has no rotary angles: leave the option out")
        said["rope_theta"] = options.rope_theta
    return said


def assemble(
    family: Family, dialect: Dialect, stored: Mapping[str, LazyTensor], config: Config, where: str
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """-> ({canonical name: tensor}, {canonical name: stored name}) in the family's order.

    ModelError lists every name without a place, every missing tensor and every wrong shape.
    """
    matches = match_names(family, dialect, stored, where)
    _check_names(family, dialect, matches, config, where)
    _check_tensors(family, dialect, stored, matches, config, where)
    sizes = _sizes(family, config)
    found: dict[str, tuple[Match, LazyTensor, str]] = {}
    for name, match in matches.items():
        first = 0
        for part in parts_of(family, dialect, match, config):
            canonical = part.name("canonical")
            shape = _shape(part, sizes)
            if shape == stored[name].shape:
                tensor = replace(stored[name], name=canonical)
            else:
                tensor = part_of(stored[name], canonical, shape, first)
            first += prod(shape)
            if dialect in part.row.layouts:
                tensor = part.row.layouts[dialect].to_canonical(tensor, config)
            found[canonical] = part, tensor, name
    order = _order(family)
    names = sorted(found, key=lambda name: order(found[name][0]))
    return {name: found[name][1] for name in names}, {name: found[name][2] for name in names}


@dataclass(frozen=True)
class Laid:
    """A stored tensor to be: its name and shape in a dialect, and the canonical tensors, laid out, that fill it in turn."""

    name: str
    shape: Shape
    parts: tuple[LazyTensor, ...]


def lay_out(family: Family, dialect: Dialect, tensors: Mapping[str, LazyTensor], config: Config) -> list[Laid]:
    """Canonical tensors as `dialect` stores them, in the order of `tensors`; parts keep their canonical names.

    ModelError for a tensor that the dialect has no name for, and for a stored tensor of which a part is missing.
    """
    matches = match_names(family, "canonical", tensors, family.name)
    sizes = _sizes(family, config)
    laid: dict[str, Laid] = {}
    for canonical, match in matches.items():
        name = match.name(dialect)
        if name in laid:
            continue
        parts = parts_of(family, dialect, match, config)
        lacking = [part.name("canonical") for part in parts if part.name("canonical") not in tensors]
        if lacking:
            raise ModelError(f"{name}: cannot be written without {', '.join(lacking)}")
        relaid = []
        for part in parts:
            tensor = tensors[part.name("canonical")]
            relaid.append(
                part.row.layouts[dialect].to_stored(tensor, config) if dialect in part.row.layouts else tensor
            )
        different = sorted({str(tensor.dtype) for tensor in relaid})
        shape = _stored_shape(parts, dialect, sizes) if len(parts) > 1 else tensors[canonical].shape
        if len(different) > 1:
            raise ModelError(
                f"{name}: its parts are {' and '.join(different)}: a stored tensor has one dtype; say --dtype"
            )
        laid[name] = Laid(name, shape, tuple(relaid))
    return list(laid.values())


def _sizes(family: Family, config: Config) -> dict[str, int]:
    return {**{key: value for key, value in config.items() if isinstance(value, int)}, **family.sizes(config)}


def _shape(match: Match, sizes: Mapping[str, int]) -> Shape:
    return tuple(sizes[key] for key in match.row.shape)


def _stored_shape(parts: list[Match], dialect: Dialect, sizes: Mapping[str, int]) -> Shape:
    """Of the tensor that holds `parts`: experts on a new first dimension, rows joined along the first."""
    first = _shape(parts[0], sizes)
    if parts[0].row.is_stacked(dialect):
        return (len(parts), *first)
    if len(parts) == 1:
        return first
    return (sum(_shape(part, sizes)[0] for part in parts), *first[1:])


def _check_names(family: Family, dialect: Dialect, matches: Mapping[str, Match], config: Config, where: str) -> None:
    """ModelError lists layers and experts beyond the config's, tensors that it excludes, and what is missing."""
    n_layers = int(config["num_hidden_layers"])
    n_experts = int(config[family.experts]) if family.experts is not None else 0
    if n_layers > len(matches):
        raise ModelError(f"{where}: says {n_layers} layers, yet there are {len(matches)} tensors")
    if n_experts > MOST_EXPERTS:
        raise ModelError(f"{where}: says {n_experts} experts, at most {MOST_EXPERTS} are believed")
    extra = sorted(name for name, match in matches.items() if match.layer is not None and match.layer >= n_layers)
    if extra:
        raise ModelError(f"{where}: the model has {n_layers} layers, yet there are tensors of more: {', '.join(extra)}")
    extra = sorted(name for name, match in matches.items() if match.expert is not None and match.expert >= n_experts)
    if extra:
        raise ModelError(
            f"{where}: the model has {n_experts} experts, yet there are tensors of more: {', '.join(extra)}"
        )
    rows = family.rows_for(config)
    denied = sorted(name for name, match in matches.items() if match.row not in rows)
    if denied:
        raise ModelError(f"{where}: the config says that these are not there, yet they are: {', '.join(denied)}")
    missing = missing_names(family, matches.values(), config, dialect)
    if missing:
        raise ModelError(f"{where}: {len(missing)} tensors are missing: {', '.join(missing)}")


def _check_tensors(
    family: Family,
    dialect: Dialect,
    stored: Mapping[str, LazyTensor],
    matches: Mapping[str, Match],
    config: Config,
    where: str,
) -> None:
    """ModelError lists wrong shapes, and weights that are whole numbers."""
    sizes = _sizes(family, config)
    wrong = []
    for name, match in matches.items():
        wanted = _stored_shape(parts_of(family, dialect, match, config), dialect, sizes)
        if stored[name].shape != wanted:
            wrong.append(f"{name} is {list(stored[name].shape)}, wanted {list(wanted)}")
    if wrong:
        raise ModelError(f"{where}: the shapes do not fit the config: {'; '.join(wrong)}")
    whole = [f"{name} ({stored[name].dtype})" for name in matches if stored[name].dtype.name in WHOLE_NUMBERS]
    if whole:
        raise ModelError(f"{where}: {len(whole)} weights are whole numbers, wanted floats: {', '.join(whole)}")


def _order(family: Family) -> Callable[[Match], tuple[int, int, int, int]]:
    """What to sort canonical tensors by: before the layers, layer by layer in the table's order, after them; the head last."""
    position = {row.canonical: number for number, row in enumerate(family.rows)}
    first_layered = next(number for number, row in enumerate(family.rows) if "{layer}" in row.canonical)

    def place(match: Match) -> tuple[int, int, int, int]:
        number = position[match.row.canonical]
        group = 1 if match.layer is not None else (0 if number < first_layered else 2)
        return group, match.layer or 0, number, match.expert or 0

    return place


def resolve_head(
    family: Family, tensors: dict[str, LazyTensor], config: Config, where: str, *, absent_means_tied: bool
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
            tensors[family.embedding],
            f"{where}: tie_word_embeddings is true, yet {HEAD} differs from the embedding: set it to false in config.json "
            "to keep the head",
        ),
    )
