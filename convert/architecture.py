"""A model family as data: one table of names, layouts, roles and configuration keys.

    Row      canonical (Hugging Face) | Meta | GGUF name of one tensor, `{layer}` and `{expert}` standing for its numbers
    Fact     one configuration value under its Hugging Face and GGUF keys
    Keys     configuration that GGUF spells in more than one number
    Derived  a GGUF tensor that holds no weights: it follows from the configuration
    Family   the rows and facts of one architecture, and how it is recognised

One stored tensor may hold several canonical ones, one after another along the first dimension:

    canonical ...experts.{expert}.w1.weight     GGUF blk.{layer}.ffn_gate_exps.weight     stacked: a new first dimension
    canonical k_proj, v_proj, q_proj            one and the same name in the dialect      joined, in the table's order

Adding a family is one file in `architectures/` that ends in `FAMILY = Family(...)`; another package brings one through an
entry point (`plugins`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

from ..dtypes import Shape
from ..errors import ModelError, PluginError, quoted
from ..kernels.scheme import Rows
from . import architectures
from .layouts import Layout
from .plugins import every_plugin, plugin_source

ROUTER = "ffn_gate_inp"  # the role of what chooses a token's experts
KEPT_ROLES = (ROUTER, "position_embd")  # llama.cpp, llama-quant.cpp: never quantized; F32 in its converter's files

Dialect = Literal["canonical", "meta", "gguf"]
GGUFNumber = Literal["u32", "f32"]


@dataclass(frozen=True)
class Row:
    """One tensor of every layer (and expert), or of the model.

    role     what recipes speak of, in GGUF's spelling (`attn_v`, `ffn_down`, `ffn_down_exps`)
    split    the dimension that Meta's model-parallel shards divide; None where every shard holds a whole copy
    shape    names of config values that its dimensions must equal (see `Family.sizes`)
    layouts  dialects that lay it out otherwise than canonical
    when     the config key that must be true for the tensor to be there (`attention_bias`), or a question to the config;
             None: always
    """

    role: str
    canonical: str
    meta: str | None
    gguf: str | None
    split: int | None
    shape: tuple[str, ...]
    layouts: Mapping[Dialect, Layout] = field(default_factory=dict)
    required: bool = True
    when: str | Callable[[Mapping[str, Any]], bool] | None = None

    @property
    def is_vector(self) -> bool:
        """True for norms and biases, which GGUF holds as F32 and no recipe quantizes."""
        return len(self.shape) == 1

    def is_stacked(self, dialect: Dialect) -> bool:
        """True where `dialect` holds all experts' tensors in one."""
        return "{expert}" in self.canonical and "{expert}" not in str(getattr(self, dialect))


@dataclass(frozen=True)
class Fact:
    """A configuration value: its Hugging Face key, its GGUF key after the `<architecture>.` prefix, and GGUF's type.

    required  a GGUF file must have the key; optional  a config may leave the value out
    """

    key: str
    gguf: str
    type: GGUFNumber
    required: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Keys:
    """Configuration that takes more than one GGUF number, such as rotary scaling.

    names     the GGUF keys it speaks of, without the `<architecture>.` prefix
    to_gguf   config -> {key: value}; a value is int (u32), float (f32), bool or str
    to_config {key: value} of those that a file has -> config values
    """

    names: tuple[str, ...]
    to_gguf: Callable[[Mapping[str, Any]], dict[str, int | float | str]]
    to_config: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Derived:
    """A GGUF tensor that follows from the config: computed when a file is written, checked and dropped when it is read.

    meaning    what it holds, in a message
    values     config -> float32 vector, or None where the model has no such tensor
    to_config  the vector in a file, and the facts found so far -> config values that only it tells
    """

    gguf: str
    meaning: str
    values: Callable[[Mapping[str, Any]], Rows | None]
    to_config: Callable[[Rows, Mapping[str, Any]], dict[str, Any]]


def attention_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Sizes that no config names: rows of the query projection, and of the key and the value projection."""
    head_dim = int(config["head_dim"])
    return {
        "q_rows": int(config["num_attention_heads"]) * head_dim,
        "kv_rows": int(config["num_key_value_heads"]) * head_dim,
    }


@dataclass(frozen=True)
class Family:
    """One architecture. `drops` are patterns of tensors that carry no weights, in any dialect.

    gguf         the name under `general.architecture`; None where GGUF has none for it
    constants    what every config of the family says, unless it says otherwise
    experts      the config key that counts experts, where rows have `{expert}`
    prefix       what canonical names begin with, which files of the model without its head leave out (`transformer.`)
    sizes        config -> sizes by name for `Row.shape`, beside the config's own numbers
    from_config  Hugging Face's config.json with rotary facts in the old spelling -> canonical config
    from_gguf    config of a GGUF file -> the same with what its clients know by heart
    in_gguf      (keys without prefix) -> is a file of that architecture, written by others, this family?
    from_params  Meta's params.json, the joined shapes by Meta name and the stored dtype -> canonical config
    shapes_from_params  params.json and the vocabulary, if known -> those shapes and dtype, before there are weights
    checks       (config) -> problems that forbid any conversion, as sentences; empty when there are none
    gguf_note    what is worth a line about every GGUF file of the family
    gguf_checks  (config) -> what clients of GGUF would compute otherwise than the config says, as sentences
    """

    name: str
    model_type: str
    hugging_face_class: str
    gguf: str | None
    rows: tuple[Row, ...]
    facts: tuple[Fact, ...]
    drops: tuple[str, ...]
    constants: Mapping[str, Any]
    keys: tuple[Keys, ...] = ()
    derived: tuple[Derived, ...] = ()
    experts: str | None = None
    prefix: str = ""
    gguf_note: str = ""
    sizes: Callable[[Mapping[str, Any]], dict[str, int]] = attention_sizes
    from_config: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
    from_gguf: Callable[[dict[str, Any]], dict[str, Any]] = lambda facts: facts
    in_gguf: Callable[[Mapping[str, Any]], bool] = lambda _keys: True
    from_params: Callable[[Mapping[str, Any], Mapping[str, Shape], str], dict[str, Any]] | None = None
    shapes_from_params: Callable[[Mapping[str, Any], int | None], tuple[dict[str, Shape], str]] | None = None
    checks: Callable[[Mapping[str, Any]], list[str]] = lambda _config: []
    gguf_checks: Callable[[Mapping[str, Any]], list[str]] = lambda _config: []

    def rows_for(self, config: Mapping[str, Any]) -> tuple[Row, ...]:
        """The rows of a model with that config."""
        return tuple(row for row in self.rows if _is_there(row, config))

    @property
    def embedding(self) -> str:
        """The canonical name of the token embedding, which a tied head is."""
        return next(row.canonical for row in self.rows if row.role == "token_embd")

    def says(self, key: str) -> bool:
        """True where the family's facts speak of the config's `key`."""
        return any(fact.key == key for fact in self.facts)


def _is_there(row: Row, config: Mapping[str, Any]) -> bool:
    if row.when is None or isinstance(row.when, str):
        return row.when is None or bool(config.get(row.when))
    return row.when(config)


FLOAT32_MIN, FLOAT32_MAX = 1.1754943508222875e-38, 3.4028234663852886e38  # normal numbers; GGUF holds facts as f32


def whole_number(value: object, what: str) -> int:
    """A count out of a config: 1 to 2^31 - 1, never a bool or a float. ModelError says what `what` is instead."""
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ModelError(f"{what} is {quoted(value)}, wanted a whole number from 1 to 2147483647")
    return value


def real_number(value: object, what: str) -> float:
    """A measure out of a config: positive, and a float32 can hold it. ModelError says what `what` is instead."""
    if type(value) not in (int, float) or not FLOAT32_MIN <= value <= FLOAT32_MAX:  # type: ignore[operator]
        raise ModelError(f"{what} is {quoted(value)}, wanted a positive number that a float32 holds")
    return float(value)  # type: ignore[arg-type]


def families() -> tuple[Family, ...]:
    """Every family that ships with smelt, by name."""
    return _families()


@cache
def _families() -> tuple[Family, ...]:
    names = sorted(module.name for module in iter_modules(architectures.__path__))
    return tuple(import_module(f"{architectures.__name__}.{name}").FAMILY for name in names)


@cache
def plugin_families() -> tuple[Family, ...]:
    """Those that other packages bring, by name: entry points in the group `smelt.architectures`, loaded when first asked for.

    PluginError for one that is no sound table, or whose `name` or `model_type` another family has.
    """
    own = families()
    found = every_plugin("smelt.architectures", Family, frozenset(family.name for family in own), family_problems)
    types = {family.model_type: f"smelt's {family.name}" for family in own}
    for family in found:
        who = plugin_source("smelt.architectures", family.name)
        if family.model_type in types:
            raise PluginError(f"{who}: model_type {family.model_type} is that of {types[family.model_type]} already")
        types[family.model_type] = who
    return found


def family_problems(family: Family) -> list[str]:
    """What smelt relies on in every family's table and this one's does not have, in sentences."""
    if not all(isinstance(row, Row) for row in family.rows) or not all(isinstance(fact, Fact) for fact in family.facts):
        return ["its rows are not all of the class Row, or its facts of the class Fact"]
    roles = {row.role for row in family.rows}
    problems = [] if "token_embd" in roles else ["no row has the role token_embd"]
    problems += [] if any("{layer}" in row.canonical for row in family.rows) else ["no row is of a layer"]
    heads = {row.canonical for row in family.rows if row.role == "output"}
    problems += [] if heads <= {"lm_head.weight"} else ["the row of the role output is not called lm_head.weight"]
    return problems


def family_by(field: Literal["name", "model_type"], value: str, where: str) -> Family:
    """The family whose `field` is `value`, smelt's own first; ModelError lists the known ones."""
    for some in (families, plugin_families):
        for family in some():
            if getattr(family, field) == value:
                return family
    known = ", ".join(getattr(family, field) for family in (*families(), *plugin_families()))
    raise ModelError(f"{where}: architecture {value!r} is not known to smelt; known: {known}")


def family_in_gguf(architecture: str, keys: Mapping[str, Any], model_type: object, where: str) -> Family:
    """The family of a GGUF file by `general.architecture`, which several share: `model_type` is what `smelt.config` says,

    if anything; otherwise `keys` (without the prefix) tell. ModelError lists the known ones.
    """
    own = [family for family in families() if family.gguf == architecture]
    named = [family for family in own if family.model_type == model_type]
    others: list[Family] = []
    if not named and (model_type is not None or not own):
        others = [family for family in plugin_families() if family.gguf == architecture]
        named = [family for family in others if family.model_type == model_type]
    for family in named or (*own, *others):
        if named or family.in_gguf(keys):
            return family
    known = ", ".join(sorted({family.gguf for family in (*families(), *plugin_families()) if family.gguf is not None}))
    raise ModelError(f"{where}: architecture {quoted(architecture)} is not known to smelt; known: {known}")


@dataclass(frozen=True)
class Match:
    """A name, understood: its row, layer and expert. A stored tensor of several rows goes by the first of them."""

    row: Row
    layer: int | None
    expert: int | None = None

    def name(self, dialect: Dialect) -> str:
        """The tensor's name in `dialect`; ModelError where the dialect has none."""
        template = getattr(self.row, dialect)
        if template is None:
            raise ModelError(f"{self.row.canonical}: has no name in {dialect}")
        return str(template).replace("{layer}", str(self.layer)).replace("{expert}", str(self.expert))


def match_names(family: Family, dialect: Dialect, names: Iterable[str], where: str) -> dict[str, Match]:
    """{stored name: Match}; dropped names are absent. ModelError lists every name that no row knows."""
    templates: dict[str, Row] = {}
    for row in family.rows:
        if (template := getattr(row, dialect)) is not None:
            templates.setdefault(template, row)
    exact = {template: row for template, row in templates.items() if "{" not in template}
    numbered = [(_pattern(template), row) for template, row in templates.items() if "{" in template]
    drops = [re.compile(pattern) for pattern in family.drops]
    found: dict[str, Match] = {}
    unknown: list[str] = []
    for name in names:
        if name in exact:
            found[name] = Match(exact[name], None)
            continue
        hit = next(((m.groupdict(), row) for pattern, row in numbered if (m := pattern.fullmatch(name))), None)
        if hit is not None:
            layer, expert = (None if hit[0].get(n) is None else int(hit[0][n]) for n in ("layer", "expert"))
            found[name] = Match(hit[1], layer, expert)
        elif not any(pattern.fullmatch(name) for pattern in drops):
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{where}: {len(unknown)} tensors have no place in {family.name}: {', '.join(sorted(unknown))}; "
            "converting without them would change the model"
        )
    return found


def _pattern(template: str) -> re.Pattern[str]:
    """A template's names, its numbers as groups."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9]\\d{0,5})", re.escape(template)))


def parts_of(family: Family, dialect: Dialect, match: Match, config: Mapping[str, Any]) -> list[Match]:
    """The canonical tensors that a stored one holds, in its order: experts one after another, or rows that share its name."""
    alike = [row for row in family.rows_for(config) if getattr(row, dialect) == getattr(match.row, dialect)]
    experts: Iterable[int | None] = (match.expert,)
    if match.row.is_stacked(dialect):
        experts = range(int(config[str(family.experts)]))
    return [Match(row, match.layer, expert) for row in alike for expert in experts]


def expected(family: Family, config: Mapping[str, Any]) -> list[Match]:
    """Every canonical tensor of a model with that config, a tied head included."""
    n_experts = int(config[family.experts]) if family.experts is not None else 0
    found = []
    for row in family.rows_for(config):
        layers: Iterable[int | None] = (
            range(int(config["num_hidden_layers"])) if "{layer}" in row.canonical else (None,)
        )
        for layer in layers:
            experts: Iterable[int | None] = range(n_experts) if "{expert}" in row.canonical else (None,)
            found += [Match(row, layer, expert) for expert in experts]
    return found


def missing_names(family: Family, have: Iterable[Match], config: Mapping[str, Any], dialect: Dialect) -> list[str]:
    """Names of required tensors that `have` lacks, in the spelling of `dialect`."""
    held = {match.name(dialect) for match in have}
    wanted = [
        match.name(dialect)
        for match in expected(family, config)
        if match.row.required and getattr(match.row, dialect) is not None
    ]
    return [name for name in dict.fromkeys(wanted) if name not in held]
