"""Matrices that a third party's scheme stores: as which tensors they lie in a folder, and how they are read again.

    config.json   "quantization_config": {"quant_method": "smelt", "scheme": "int8-row", "tensors": {name: shape, ...}}
    weights       <name><suffix> for each of the scheme's stored tensors: model.layers.0.mlp.up_proj.weight, ..._scale

A `Scheme` (kernels/scheme.py) is an entry point in the group `smelt.schemes`: `stored(shape)`, `encode(rows, importance)` and
`decode(stored)`. Each stored tensor is a matrix with as many rows as the weight, so any range of rows is read, encoded and
written by itself. `importance` is None: llama-imatrix's names are GGUF's.
Reading decodes: such a matrix is float32 from then on, and the model remembers what it takes in the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..dtypes import F32, DType, Shape
from ..errors import ModelError, PluginError, quoted
from ..formats.checkpoint import Bytes, StoredTensor
from ..kernels.reference.checks import refuse_non_finite
from ..kernels.scheme import Rows, Scheme
from .model import LazyTensor, Packed
from .plugins import find_plugin, plugin_call, plugin_names

METHOD = "smelt"
GROUP: Final = "smelt.schemes"


def third_party_scheme(name: str, built_in: frozenset[str] = frozenset()) -> Scheme | None:
    """The scheme that a plugin brings under that name; None where none does. PluginError where it is `built_in` too."""
    return find_plugin(GROUP, Scheme, name, built_in, _problems)


def third_party_schemes() -> tuple[str, ...]:
    """The names of the plugins' schemes; none is loaded."""
    return plugin_names(GROUP)


def _problems(scheme: Scheme) -> list[str]:
    values = {"stored": scheme.stored, "encode": scheme.encode, "decode": scheme.decode}
    return [f"{name} is no function" for name, value in values.items() if not callable(value)]


def stored_as(scheme: Scheme, shape: Shape) -> dict[str, tuple[Shape, DType]]:
    """{suffix: (shape, dtype)} of a weight [rows, columns]. PluginError where one has not a row for each of the weight's."""
    found = plugin_call(GROUP, scheme.name, f"stores a weight of shape {list(shape)}", lambda: scheme.stored(shape))
    if not found or any(len(own) != 2 or own[0] != shape[0] for own, _ in found.values()):
        raise PluginError(f"{scheme.name}: a weight of shape {list(shape)} is not stored as matrices of as many rows")
    return found


def packed_config(scheme: Scheme, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The quantization_config of a folder in which `scheme` stores the matrices of these names and shapes."""
    return {"quant_method": METHOD, "scheme": scheme.name, "tensors": {name: list(shapes[name]) for name in shapes}}


@dataclass(frozen=True)
class Unpacked:
    """Tensors by the files' names, those of a scheme whole and decoded; what is worth a line about these."""

    tensors: dict[str, LazyTensor]
    notes: tuple[str, ...] = ()


def unpacked(tensors: Mapping[str, StoredTensor], settings: object, where: str) -> Unpacked:
    """`tensors` of a folder whose config.json has `settings` as its quantization_config; as they are where it has none.

    ModelError for another method than smelt's, a scheme that no plugin brings, and tensors that are not as it stores them.
    """
    plain = {name: LazyTensor(name, tensor.shape, tensor.dtype, tensor.read) for name, tensor in tensors.items()}
    if settings is None:
        return Unpacked(plain)
    said = settings if isinstance(settings, dict) else {}
    if said.get("quant_method") != METHOD:
        method = quoted(said.get("quant_method", "?"))
        raise ModelError(f"{where}: the weights are quantized ({method}): smelt does not read this dialect yet")
    name, shapes = said.get("scheme"), said.get("tensors")
    if not isinstance(name, str) or not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise ModelError(f"{where}: quantization_config names no scheme, or no shapes of its tensors")
    scheme = third_party_scheme(name)
    if scheme is None:
        known = ", ".join(third_party_schemes()) or "none"
        raise ModelError(
            f"{where}: the weights are stored by the scheme {quoted(name)}, which no installed package brings (installed: "
            f"{known}): install the package that wrote them"
        )
    whole = dict(plain)
    for weight, shape in shapes.items():
        parts = _parts(scheme, weight, tuple(shape), plain, where)
        for part in parts.values():
            whole.pop(part.name, None)
        packed = Packed(scheme.name, sum(part.nbytes for part in parts.values()))
        whole[weight] = LazyTensor(weight, tuple(shape), F32, _decoded(scheme, weight, parts, shape[1]), packed)
    return Unpacked(whole, (f"{len(shapes)} matrices are stored by the scheme {name} and are read as float32",))


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(size) is int and 0 < size < 1 << 31 for size in value)
    )


def _parts(
    scheme: Scheme, weight: str, shape: Shape, plain: Mapping[str, LazyTensor], where: str
) -> dict[str, LazyTensor]:
    """{suffix: stored tensor} of one weight; ModelError where they are not there as the scheme says."""
    parts = {}
    for suffix, (own, dtype) in stored_as(scheme, shape).items():
        part = plain.get(weight + suffix)
        if part is None or (part.shape, part.dtype) != (tuple(own), dtype):
            got = "missing" if part is None else f"{part.dtype} {list(part.shape)}"
            raise ModelError(f"{where}: {weight + suffix} is {got}, the scheme {scheme.name} wants {dtype} {list(own)}")
        parts[suffix] = part
    return parts


def _decoded(scheme: Scheme, weight: str, parts: Mapping[str, LazyTensor], columns: int) -> Callable[[int, int], Bytes]:
    def read(start_row: int, stop_row: int) -> Bytes:
        stored = {suffix: part.read(start_row, stop_row) for suffix, part in parts.items()}
        rows = plugin_call(GROUP, scheme.name, f"decodes {weight}", lambda: scheme.decode(stored))
        if (
            not isinstance(rows, np.ndarray)
            or rows.dtype != np.float32
            or rows.shape != (stop_row - start_row, columns)
        ):
            raise PluginError(f"{scheme.name}: decode of {weight} gave {_described(rows)}, wanted float32 rows")
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)

    return read


def encoded_rows(scheme: Scheme, shape: Shape, rows: Rows, importance: Rows | None) -> dict[str, Bytes]:
    """float32[n, columns] of a weight of `shape` as the scheme stores them.

    NonFiniteError; PluginError where they are not stored as the scheme itself says.
    """
    refuse_non_finite(rows)
    stored: object = plugin_call(GROUP, scheme.name, "encodes", lambda: scheme.encode(rows, importance))
    wanted = {
        suffix: (len(rows), dtype.row_nbytes(own[1])) for suffix, (own, dtype) in stored_as(scheme, shape).items()
    }
    found = stored if isinstance(stored, dict) else {}
    got = {
        suffix: value.shape if isinstance(value, np.ndarray) and value.dtype == np.uint8 else _described(value)
        for suffix, value in found.items()
    }
    if got != wanted:
        raise PluginError(f"{scheme.name}: encode gave {quoted(got)}, wanted uint8 rows {quoted(wanted)}")
    return found


def _described(value: object) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
