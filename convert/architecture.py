"""A model family as data: one table of names, layouts, roles and configuration keys.

    Row      canonical (Hugging Face) | Meta | GGUF name of one tensor, `{layer}` standing for its number
    Fact     one configuration value under its Hugging Face and GGUF keys
    Family   the rows and facts of one architecture, and how it is recognised

Adding a family is one file in `architectures/` that ends in `FAMILY = Family(...)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

from ..dtypes import Shape
from ..errors import ModelError, quoted
from . import architectures

Dialect = Literal["canonical", "meta", "gguf"]


@dataclass(frozen=True)
class Row:
    """One tensor of every layer, or of the model.

    role    what recipes speak of, in GGUF's spelling (`attn_v`, `ffn_down`)
    split   the dimension that Meta's model-parallel shards divide; None where every shard holds a whole copy
    rotary  the config key that counts its heads, where rows are reordered between canonical and Meta/GGUF; else None
    shape   names of config values that its dimensions must equal
    """

    role: str
    canonical: str
    meta: str | None
    gguf: str | None
    split: int | None
    shape: tuple[str, ...]
    rotary: str | None = None
    required: bool = True

    @property
    def is_vector(self) -> bool:
        """True for norms and biases, which GGUF holds as F32 and no recipe quantizes."""
        return len(self.shape) == 1


@dataclass(frozen=True)
class Fact:
    """A configuration value: its Hugging Face key, its GGUF key after the `<architecture>.` prefix, and GGUF's type."""

    key: str
    gguf: str
    type: Literal["u32", "f32"]
    required: bool = True


@dataclass(frozen=True)
class Family:
    """One architecture. `drops` are patterns of tensors that carry no weights, in any dialect.

    from_params  Meta's params.json, the joined shapes by Meta name and the stored dtype -> canonical config
    shapes_from_params  params.json and the vocabulary, if known -> those shapes and dtype, before there are weights
    checks       (config) -> problems that forbid a conversion, as sentences; empty when there are none
    """

    name: str
    model_type: str
    hugging_face_class: str
    gguf: str
    rows: tuple[Row, ...]
    facts: tuple[Fact, ...]
    drops: tuple[str, ...]
    constants: Mapping[str, Any]
    from_params: Callable[[Mapping[str, Any], Mapping[str, Shape], str], dict[str, Any]] | None = None
    shapes_from_params: Callable[[Mapping[str, Any], int | None], tuple[dict[str, Shape], str]] | None = None
    checks: Callable[[Mapping[str, Any]], list[str]] = lambda _config: []


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


def family_by(field: Literal["name", "model_type", "gguf"], value: str, where: str) -> Family:
    """The family whose `field` is `value`; ModelError lists the known ones."""
    for family in families():
        if getattr(family, field) == value:
            return family
    known = ", ".join(getattr(family, field) for family in families())
    raise ModelError(f"{where}: architecture {value!r} is not known to smelt; known: {known}")


@dataclass(frozen=True)
class Match:
    """A stored name, understood: its row and layer."""

    row: Row
    layer: int | None

    def name(self, dialect: Dialect) -> str:
        """The tensor's name in `dialect`; ModelError where the dialect has none."""
        template = getattr(self.row, dialect)
        if template is None:
            raise ModelError(f"{self.row.canonical}: has no name in {dialect}")
        return str(template).replace("{layer}", str(self.layer))


def match_names(family: Family, dialect: Dialect, names: Iterable[str], where: str) -> dict[str, Match]:
    """{stored name: Match}; dropped names are absent. ModelError lists every name that no row knows."""
    templates = [(template, row) for row in family.rows if (template := getattr(row, dialect)) is not None]
    exact = {template: row for template, row in templates if "{layer}" not in template}
    layered = [
        (re.compile(re.escape(template).replace(r"\{layer\}", r"(?P<layer>0|[1-9]\d{0,5})")), row)
        for template, row in templates
        if "{layer}" in template
    ]
    drops = [re.compile(pattern) for pattern in family.drops]
    found: dict[str, Match] = {}
    unknown: list[str] = []
    for name in names:
        if name in exact:
            found[name] = Match(exact[name], None)
            continue
        hit = next(((m, row) for pattern, row in layered if (m := pattern.fullmatch(name))), None)
        if hit is not None:
            found[name] = Match(hit[1], int(hit[0]["layer"]))
        elif not any(pattern.fullmatch(name) for pattern in drops):
            unknown.append(name)
    if unknown:
        raise ModelError(
            f"{where}: {len(unknown)} tensors have no place in {family.name}: {', '.join(sorted(unknown))}; "
            "converting without them would change the model"
        )
    return found


def missing_names(family: Family, matches: Iterable[Match], n_layers: int, dialect: Dialect) -> list[str]:
    """Names of required tensors that no match covers, in the spelling of `dialect`."""
    have = {(match.row.canonical, match.layer) for match in matches}
    missing = []
    for row in family.rows:
        if not row.required or getattr(row, dialect) is None:
            continue
        layers: Iterable[int | None] = range(n_layers) if "{layer}" in row.canonical else (None,)
        missing += [Match(row, layer).name(dialect) for layer in layers if (row.canonical, layer) not in have]
    return missing
