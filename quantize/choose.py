"""Recipe + model -> {tensor: Scheme}: roles and places counted as llama.cpp counts them, overrides first, fallbacks last.

Vectors (norms, biases), learned positions and the routers of experts are never quantized. The experts of a layer are one
tensor in GGUF, so they share a type. The first of these that speaks of a matrix decides:

    --leave-output-tensor   the head as it is stored
    --token-embedding-type, --output-tensor-type
    --tensor-type           the first that matches
    --pure                  the recipe's base type
    the recipe's rules

A row that does not divide into blocks falls back only if the user allows it, and is then listed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..convert.architecture import KEPT_ROLES, Match, family_by, match_names
from ..convert.assemble import HEAD
from ..convert.model import LazyTensor, Model
from ..convert.packed import third_party_scheme, third_party_schemes
from ..dtypes import DTYPES, F32, DType, Shape
from ..errors import ModelError, UsageError
from ..formats.gguf_types import TENSOR_IDS
from ..kernels.scheme import Scheme, can_encode, cast_scheme
from .recipes import ALIASES, FALLBACKS, RECIPES, Place, Recipe, by_rule, needs_importance

LLAMA_LIKE = ("llama", "mistral")  # what GGUF calls llama, without experts
OWN = frozenset(name.lower() for name in (*RECIPES, *ALIASES, *DTYPES))  # names that no plugin's scheme may have


@dataclass(frozen=True)
class ChooseOptions:
    """pure: the base type for every matrix; allow_fallback: let rows that do not divide take a wider type;

    tensor_types: (regular expression over GGUF names, type), the first match wins; imatrix: importance will be given;
    output_type, embedding_type: the head's and the embedding's type; leave_output: the head as it is stored.
    """

    pure: bool = False
    allow_fallback: bool = False
    tensor_types: tuple[tuple[str, str], ...] = ()
    imatrix: bool = False
    output_type: str | None = None
    embedding_type: str | None = None
    leave_output: bool = False


@dataclass(frozen=True)
class Choice:
    """A scheme for every tensor by canonical name, and what had to give way."""

    recipe: Recipe
    schemes: Mapping[str, Scheme]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Types:
    """A type for every tensor by canonical name, what had to give way, and "name (type)" that need importance."""

    dtypes: Mapping[str, DType]
    notes: tuple[str, ...]
    need_importance: tuple[str, ...]

    @property
    def lacking(self) -> tuple[str, ...]:
        """Names of the types that smelt cannot encode."""
        return tuple(sorted({dtype.name for dtype in self.dtypes.values() if not can_encode(dtype)}))


def find_recipe(name: str) -> Recipe:
    """The recipe by its name in any case (`q4_k_m`, `q4_k` for Q4_K_M); UsageError lists the ones that can be made."""
    wanted = ALIASES.get(name.upper(), name.upper())
    recipe = RECIPES.get(wanted)
    if recipe is None or not _can_make(recipe):
        known = [recipe.name.lower() for recipe in RECIPES.values() if _can_make(recipe)]
        raise UsageError(f"--scheme {name}: unknown to smelt; it makes {', '.join((*known, *third_party_schemes()))}")
    return recipe


def find_scheme(name: str) -> Recipe | Scheme:
    """The recipe of that name, else the scheme that a plugin brings under it. PluginError where both have the name."""
    found = third_party_scheme(name.lower(), OWN)
    return find_recipe(name) if found is None else found


def packed_matrices(model: Model, *, pure: bool) -> dict[str, Shape]:
    """{canonical name: shape} of what a plugin's scheme stores: the layers' matrices, if `pure` also embedding and head."""
    family = family_by("name", model.architecture, str(model.files[0]))
    matches = match_names(family, "canonical", model.tensors, family.name)
    ends = () if pure else ("token_embd", "output")
    return {
        name: model.tensors[name].shape
        for name, match in matches.items()
        if len(model.tensors[name].shape) == 2 and match.row.role not in (*KEPT_ROLES, *ends)
    }


def _can_make(recipe: Recipe) -> bool:
    """True where smelt can encode every type that the recipe may ask for."""
    types = {recipe.base} | {
        by_rule(recipe, role, Place(i, 32, gqa, 0, imatrix=False))
        for role in ("attn_v", "ffn_down", "attn_output", "output", "token_embd", "attn_q", "attn_k", "ffn_up")
        for i in (0, 12, 31)
        for gqa in (1, 8)
    }
    return all(can_encode(DTYPES[name]) for name in types)


def choose(model: Model, recipe: Recipe, options: ChooseOptions) -> Choice:
    """A scheme for every tensor of `model`.

    ModelError lists rows that do not divide, unless fallbacks are allowed. UsageError for a type that smelt cannot make, and
    for one that llama.cpp refuses to make without importance.
    """
    types = choose_types(model, recipe, options)
    if types.lacking:
        raise UsageError(f"smelt cannot encode {', '.join(types.lacking)} yet: choose another scheme or type")
    if types.need_importance and not options.imatrix:
        raise UsageError(
            f"{recipe.name}: {len(types.need_importance)} tensors take a type that is useless without importance, first "
            f"{types.need_importance[0]}: give --imatrix FILE, or choose another scheme"
        )
    return Choice(recipe, {name: cast_scheme(types.dtypes[name]) for name in model.tensors}, types.notes)


def choose_types(model: Model, recipe: Recipe, options: ChooseOptions) -> Types:
    """The type of every tensor of `model`, whether smelt can make it or not; ModelError as `choose`."""
    family = family_by("name", model.architecture, str(model.files[0]))
    matches = match_names(family, "canonical", model.tensors, str(model.files[0]))
    overrides = _overrides(options.tensor_types)
    named = _named_ends(model, options)
    used: set[str] = set()
    wanted: dict[str, DType] = {}
    by_recipe: set[str] = set()
    typed = _typed(model, recipe, options.imatrix)
    for name, match in sorted(matches.items(), key=lambda item: _turn(item[1])):
        tensor = model.tensors[name]
        if len(tensor.shape) < 2 or match.row.role in KEPT_ROLES:
            wanted[name] = F32
            continue
        override = next(((p.pattern, t) for p, t in overrides if p.search(match.name("gguf"))), None)
        if override is not None:
            used.add(override[0])
        if name in named:
            wanted[name] = named[name]
        elif override is not None:
            wanted[name] = override[1]
        elif options.pure:
            wanted[name] = DTYPES[recipe.base]
        else:
            wanted[name] = DTYPES[typed(match)]
            by_recipe.add(name)
    unused = [pattern for pattern, _ in options.tensor_types if pattern not in used]
    if unused:
        raise UsageError(
            f"--tensor-type {', '.join(unused)}: matches no tensor; names are GGUF's, as blk.0.attn_v.weight"
        )
    head = head_name(model)
    dtypes, notes = _with_fallbacks(model.tensors, wanted, head if head in by_recipe else None, options.allow_fallback)
    needing = tuple(
        f"{matches[name].name('gguf')} ({dtype})"
        for name, dtype in dtypes.items()
        if needs_importance(recipe, matches[name].row.role, dtype.name)
    )
    return Types(dtypes, notes, needing)


def head_name(model: Model) -> str:
    """The canonical name of the tensor that makes the logits: the embedding where the head is tied to it."""
    return HEAD if HEAD in model.tensors else _embedding_name(model)


def _embedding_name(model: Model) -> str:
    return family_by("name", model.architecture, str(model.files[0])).embedding


def _named_ends(model: Model, options: ChooseOptions) -> dict[str, DType]:
    """What the options say of the embedding and the head by name. UsageError for a head that the model does not have."""
    named: dict[str, DType] = {}
    head = head_name(model)
    if options.leave_output:
        if options.output_type is not None:
            raise UsageError("--leave-output-tensor and --output-tensor-type contradict each other: give one of them")
        if head != HEAD:
            raise UsageError(
                "--leave-output-tensor: this model has no output.weight, its head is the embedding: "
                "say --token-embedding-type f16"
            )
        named[head] = model.tensors[head].dtype
    if options.output_type is not None:
        named[head] = _dtype("--output-tensor-type", options.output_type)
    if options.embedding_type is not None:  # wins where one tensor is both, as in llama.cpp
        named[_embedding_name(model)] = _dtype("--token-embedding-type", options.embedding_type)
    return named


def _turn(match: Match) -> tuple[int, str, int]:
    """Tensors in the order that llama.cpp takes them."""
    return match.layer or 0, match.name("gguf"), match.expert or 0


def _typed(model: Model, recipe: Recipe, imatrix: bool) -> Callable[[Match], str]:
    """Matches in order -> the recipe's types; counts advance as llama.cpp's do: not for tensors that an override takes."""
    config = model.config
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])
    n, experts = int(config["num_hidden_layers"]), int(config.get("num_local_experts") or 0)
    # llama.cpp calls these 70B; LLaMA 1's 65B has as many layers, without grouped queries
    is_70b = n == 80 and (model.architecture == "qwen2" or (heads != kv_heads and model.architecture in LLAMA_LIKE))
    counts: dict[str, int] = {}
    types: dict[str, str] = {}

    def typed(match: Match) -> str:
        stored = match.name("gguf")
        if stored not in types:
            role = match.row.role.removesuffix("_exps")
            if role == "token_embd" and HEAD not in model.tensors:
                role = "output"  # a tied embedding is the head as well, and gets the head's bits
            i = counts.get(role, 0)
            counts[role] = i + 1
            types[stored] = by_rule(recipe, role, Place(i, n, heads // max(1, kv_heads), experts, imatrix, is_70b))
        return types[stored]

    return typed


def _dtype(option: str, name: str) -> DType:
    """A type by its name in any case; UsageError where there is none, or GGUF cannot hold it."""
    if name.upper() not in TENSOR_IDS:
        raise UsageError(f"{option} {name}: the type is unknown; GGUF has {', '.join(TENSOR_IDS).lower()}")
    return DTYPES[name.upper()]


def _overrides(tensor_types: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern[str], DType]]:
    compiled = []
    for pattern, name in tensor_types:
        try:
            compiled.append((re.compile(pattern), _dtype(f"--tensor-type {pattern}:", name)))
        except re.error as error:
            raise UsageError(f"--tensor-type {pattern}={name}: not a regular expression: {error}") from None
    return compiled


def _with_fallbacks(
    tensors: Mapping[str, LazyTensor], wanted: Mapping[str, DType], head: str | None, allow: bool
) -> tuple[dict[str, DType], tuple[str, ...]]:
    """Types whose blocks divide the rows. ModelError names every tensor that would change, unless `allow`.

    `head` is the head if a recipe chose its type: llama.cpp then falls back to Q8_0 whatever the type was.
    """
    fitted: dict[str, DType] = {}
    changed: list[str] = []
    for name, dtype in wanted.items():
        columns = tensors[name].shape[-1]
        fit = dtype
        if columns % fit.block:
            fit = DTYPES["Q8_0" if name == head else FALLBACKS.get(dtype.name, "F16")]
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
