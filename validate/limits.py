"""What may be lost: the default table, by bits per weight of the candidate's matrices, and a TOML file in its place.

    max_kld = 0.02                    # of every candidate: stronger than any table
    max_kld_p999 = 1.5

    [[table]]                         # in place of the default one: the first entry that applies
    min_bits = 4.0                    # bits per weight from
    min_parameters = 30_000_000_000   # and parameters from; 0 unless said
    max_ppl_drift = 0.015             # fractions, or "1.5%"
    min_top1 = "92%"

Levels: about twice what llama.cpp's types reach on LLaMA-2-7B (its README: Q8_0 +0.07 %, KLD 0.0004, 98.8 %; Q6_K +0.24 %,
0.0021, 97.5 %; Q4_K_M +1.4 %, 0.0127, 94.7 %); large models lose less.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError, quoted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Limits:
    """The most that may be lost; None: not judged. KLD in nats, the rest are fractions.

    max_kld_p999  of the thousandth of tokens that suffer most; min_top5: the share of the five likeliest tokens that stay
    """

    max_ppl_drift: float | None = None
    max_kld: float | None = None
    min_top1: float | None = None
    max_kld_p999: float | None = None
    min_top5: float | None = None

    def overridden_by(self, given: Limits) -> Limits:
        """These limits, with each one that `given` names in its place."""
        named = {name: value for name, value in vars(given).items() if value is not None}
        return replace(self, **named)


# (bits per weight from, parameters from, limits): the first row that applies
Table = tuple[tuple[float, int, Limits], ...]


SAME_DTYPE = Limits(max_kld=1e-6)
LARGE = 30_000_000_000  # parameters

TABLE: Table = (
    (8.0, 0, Limits(0.002, 0.003, 0.97)),
    (6.0, 0, Limits(0.005, 0.01, 0.95)),
    (5.0, 0, Limits(0.01, 0.02, 0.93)),
    (4.0, LARGE, Limits(0.015, 0.03, 0.92)),
    (4.0, 0, Limits(0.03, 0.05, 0.90)),
    (3.0, 0, Limits(0.12, 0.15, 0.85)),
    (0.0, 0, Limits(0.30, 0.5, 0.70)),
)

WORDS = tuple(field.name for field in fields(Limits))


def default_limits(bits_per_weight: float, n_parameters: int, same_dtype: bool, table: Table = TABLE) -> Limits:
    """What a candidate of this size must hold to; no limits where no row of the table applies."""
    if same_dtype:
        return SAME_DTYPE
    rows = (limits for bits, size, limits in table if bits_per_weight >= bits and n_parameters >= size)
    return next(rows, Limits())


def read_limits(path: Path) -> tuple[Limits, Table]:
    """A TOML file of gates -> (limits of every candidate, the table). UsageError for what is no limit in it."""
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    entries = document.pop("table", None)
    own = _limits(path, document, ())
    if entries is None:
        return own, TABLE
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path}: table is no list of entries: write each under [[table]]")
    rows = []
    for entry in entries:
        bits = _number(path, "min_bits", entry.get("min_bits", 0.0))
        size = _number(path, "min_parameters", entry.get("min_parameters", 0))
        rows.append((bits, int(size), _limits(path, entry, ("min_bits", "min_parameters"))))
    return own, tuple(rows)


def _limits(path: Path, entry: Mapping[str, Any], others: tuple[str, ...]) -> Limits:
    unknown = [name for name in entry if name not in (*WORDS, *others)]
    if unknown:
        raise UsageError(f"{path}: {quoted(unknown[0])} is no limit; known: {', '.join((*WORDS, *others, 'table'))}")
    return Limits(**{name: _number(path, name, entry[name]) for name in WORDS if name in entry})


def _number(path: Path, name: str, value: object) -> float:
    """A number, or a percentage as text."""
    text = value.strip() if isinstance(value, str) else ""
    try:
        number = float(text.removesuffix("%")) / 100 if text.endswith("%") else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < float("inf"):
        raise UsageError(f'{path}: {name} is {quoted(value)}, wanted a number, or a percentage such as "1.5%"')
    return float(number)
