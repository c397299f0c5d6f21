"""Recipe + model -> {tensor: Scheme}: roles and places counted as llama.cpp counts them, overrides first, fallbacks last.

Vectors (norms, biases) are never quantized. Precedence: the first matching --tensor-type, then --pure, then the recipe's
rules; a row that does not divide into blocks falls back only if the user allows it, and is then listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..convert.architecture import Match, family_by, match_names
from ..convert.assemble import EMBEDDING, HEAD
from ..convert.model import LazyTensor, Model
from ..dtypes import DTYPES, F32, DType
from ..errors import ModelError, UsageError
from ..kernels.scheme import Scheme, cast_scheme, has_kernel
from .recipes import ALIASES, FALLBACKS, RECIPES, Place, Recipe, by_rule


@dataclass(frozen=True)
class ChooseOptions:
    """pure: the base type for every matrix; allow_fallback: let rows that do not divide take a wider type;

    tensor_types: (regular expression over GGUF names, type), the first match wins; imatrix: importance will be given.
    """

    pure: bool = False
    allow_fallback: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    imatrix: bool = False


@dataclass(frozen=True)
class Choice:
    """A scheme for every tensor by canonical name, and what had to give way."""

    recipe: Recipe
    schemes: Mapping[str, Scheme]
    notes: tuple[str, ...]


def find_recipe(name: str) -> Recipe:
    """The recipe by its name in any case (`q4_k_m`, `q4_k` for Q4_K_M); UsageError lists the ones that can be made."""
    wanted = ALIASES.get(name.upper(), name.upper())
    recipe = RECIPES.get(wanted)
    if recipe is None or not _can_make(recipe):
        known = ", ".join(recipe.name.lower() for recipe in RECIPES.values() if _can_make(recipe))
        raise UsageError(f"--scheme {name}: unknown to smelt; it makes {known}")
    return recipe


def _can_make(recipe: Recipe) -> bool:
    """True where every type that the recipe may ask for has a kernel."""
    types = {recipe.base} | {
        by_rule(recipe, role, Place(i, 32, gqa, 0, imatrix=False))
        for role in ("attn_v", "ffn_down", "attn_output", "output", "token_embd", "attn_q", "attn_k", "ffn_up")
        for i in (0, 12, 31)
        for gqa in (1, 8)
    }
    return all(has_kernel(DTYPES[name]) for name in types)


def choose(model: Model, recipe: Recipe, options: ChooseOptions) -> Choice:
    """A scheme for every tensor of `model`. ModelError lists rows that do not divide, unless fallbacks are allowed."""
    family = family_by("name", model.architecture, str(model.files[0]))
    matches = match_names(family, "canonical", model.tensors, str(model.files[0]))
    overrides = _overrides(options.tensor_types)
    used: set[str] = set()
    wanted: dict[str, DType] = {}
    counts: dict[str, int] = {}
    for name, match in sorted(matches.items(), key=lambda item: (item[1].layer or 0, item[1].name("gguf"))):
        tensor = model.tensors[name]
        if len(tensor.shape) < 2:
            wanted[name] = F32
            continue
        override = next(((p.pattern, t) for p, t in overrides if p.search(match.name("gguf"))), None)
        if override is not None:
            used.add(override[0])
            wanted[name] = override[1]
        elif options.pure:
            wanted[name] = DTYPES[recipe.base]
        else:
            wanted[name] = DTYPES[_typed(model, recipe, match, counts, options.imatrix)]
    unused = [pattern for pattern, _ in options.tensor_types if pattern not in used]
    if unused:
        raise UsageError(
            f"--tensor-type {', '.join(unused)}: matches no tensor; names are GGUF's, as blk.0.attn_v.weight"
        )
    wanted, notes = _with_fallbacks(model.tensors, wanted, options.allow_fallback)
    lacking = sorted({dtype.name for dtype in wanted.values() if not has_kernel(dtype)})
    if lacking:
        raise UsageError(f"smelt cannot encode {', '.join(lacking)} yet: choose another scheme or type")
    return Choice(recipe, {name: cast_scheme(wanted[name]) for name in model.tensors}, notes)


def _typed(model: Model, recipe: Recipe, match: Match, counts: dict[str, int], imatrix: bool) -> str:
    """The recipe's type for one matrix; counts advance as llama.cpp's do."""
    role = match.row.role
    config = model.config
    if role == "token_embd" and HEAD not in model.tensors and match.row.canonical == EMBEDDING:
        role = "output"  # a tied embedding is the head as well, and gets the head's bits
    i = counts.get(role, 0)
    counts[role] = i + 1
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    n = int(config["num_hidden_layers"])
    place = Place(i, n, heads // max(1, kv_heads), int(config.get("num_local_experts") or 0), imatrix)
    chosen = recipe.base if recipe.base in ("F32", "F16", "BF16") else by_rule(recipe, role, place)
    is_70b = model.architecture == "llama" and n == 80 and heads != kv_heads
    if role == "attn_v" and is_70b and chosen in ("Q3_K", "Q4_K"):
        chosen = "Q5_K"  # eight times smaller under grouped-query attention: bits are cheap there
    if role in ("attn_v", "attn_k") and place.experts == 8 and recipe.base not in ("F32", "F16", "BF16"):
        chosen = "Q8_0"
    return chosen


def _overrides(tensor_types: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern[str], DType]]:
    compiled = []
    for pattern, name in tensor_types:
        if name.upper() not in DTYPES:
            raise UsageError(f"--tensor-type {pattern}={name}: the type is unknown")
        try:
            compiled.append((re.compile(pattern), DTYPES[name.upper()]))
        except re.error as error:
            raise UsageError(f"--tensor-type {pattern}={name}: not a regular expression: {error}") from None
    return compiled


def _with_fallbacks(
    tensors: Mapping[str, LazyTensor], wanted: Mapping[str, DType], allow: bool
) -> tuple[dict[str, DType], tuple[str, ...]]:
    """Types whose blocks divide the rows. ModelError names every tensor that would change, unless `allow`."""
    fitted: dict[str, DType] = {}
    changed: list[str] = []
    for name, dtype in wanted.items():
        columns = tensors[name].shape[-1]
        fit = dtype
        if columns % fit.block:
            fit = DTYPES[FALLBACKS.get(dtype.name, "F16")]
        if columns % fit.block:
            fit = DTYPES["F16"]
        if fit != dtype:
            changed.append(f"{name} ({columns} columns: {dtype.name} -> {fit.name})")
        fitted[name] = fit
    if changed and not allow:
        raise ModelError(
            f"{len(changed)} tensors have rows that do not divide into blocks: {', '.join(changed)}: "
            "say --allow-fallback to let them take the type in brackets"
        )
    return fitted, tuple(f"fallback: {line}" for line in changed)
