"""Frozen values to JSON and back, exactly: what a journal keeps of a measurement.

    dataclass   {field: value}          list, tuple   [...]         dict    [[key, value], ...]
    float       as Python prints it, which reads back to the same bits; NaN and infinity by JSON's usual extension
    array       {dtype, shape, base64}

`from_plain` builds what the type's annotations say and takes nothing else, so a damaged file is an error and never a value.
"""

from __future__ import annotations

import base64
import binascii
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from ..errors import FormatError, quoted


def to_plain(value: Any) -> Any:
    """Values of dataclasses, lists, tuples, dicts, arrays, numbers, text and None -> what `json.dumps` takes."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return [[to_plain(key), to_plain(inner)] for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, np.ndarray):
        content = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"dtype": value.dtype.str, "shape": list(value.shape), "base64": content}
    return str(value) if isinstance(value, Path) else value


def from_plain(kind: Any, plain: Any) -> Any:
    """`plain`, as `to_plain` made it of a value annotated `kind`, -> that value. FormatError where it is none."""
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return None if plain is None else from_plain(_only(arguments), plain)
    if is_dataclass(kind):
        return _dataclass(kind, plain)
    if origin is np.ndarray:
        return _array(plain)
    if origin is dict:
        return {from_plain(arguments[0], k): from_plain(arguments[1], v) for k, v in map(_pair, _list(plain))}
    if origin is tuple and arguments[-1] is not Ellipsis:
        return tuple(
            from_plain(inner, each) for inner, each in zip(arguments, _list(plain, len(arguments)), strict=True)
        )
    if origin in (list, tuple):
        return origin(from_plain(arguments[0], each) for each in _list(plain))
    number = float(plain) if origin is float and type(plain) is int else plain
    if origin not in (float, int, str, bool) or type(number) is not origin:
        raise FormatError(f"{quoted(plain)} where {getattr(kind, '__name__', kind)} was wanted")
    return number


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _dataclass(kind: Any, plain: Any) -> Any:
    names = [field.name for field in fields(kind)]
    if not isinstance(plain, dict) or set(plain) != set(names):
        raise FormatError(f"{quoted(plain)} where the fields of {kind.__name__} were wanted")
    return kind(**{name: from_plain(_hints(kind)[name], plain[name]) for name in names})


def _only(arguments: tuple[Any, ...]) -> Any:
    """X of `X | None`."""
    (inner,) = (each for each in arguments if each is not type(None))
    return inner


def _list(plain: Any, count: int | None = None) -> list[Any]:
    if not isinstance(plain, list) or (count is not None and len(plain) != count):
        raise FormatError(f"{quoted(plain)} where a list of {count or 'any number'} was wanted")
    return plain


def _pair(plain: Any) -> tuple[Any, Any]:
    key, value = _list(plain, 2)
    return key, value


def _array(plain: Any) -> Any:
    try:
        content = base64.b64decode(plain["base64"], validate=True)
        return np.frombuffer(content, np.dtype(plain["dtype"])).reshape(plain["shape"]).copy()
    except (TypeError, KeyError, ValueError, binascii.Error) as error:
        raise FormatError(f"{quoted(plain)} where an array was wanted: {error}") from None
