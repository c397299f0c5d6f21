"""Where every byte of a GGUF file goes, known before any tensor is read.

Keys and tensors keep the order they are given in; every tensor is padded to the alignment, the last too. Version 3,
little-endian. In a split set the first file carries the keys, and each says which part it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from ..errors import ModelError, quoted
from . import gguf_types as types
from .checkpoint import FileLayout, TensorSpec
from .gguf_types import SCALARS, VALUE_IDS, GGUFArray, GGUFValue, padded
from .shards import split_by_size

VERSION = 3


def gguf_layout(specs: Sequence[TensorSpec], metadata: Mapping[str, GGUFValue]) -> FileLayout:
    """Tensors and typed keys, both in their order -> one file's layout, slots absolute.

    The alignment is `general.alignment` where that key is given, else 32 bytes. ModelError for what GGUF cannot hold: a
    dtype that ggml lacks, no or more than 4 dimensions, a name over 63 bytes or twice, a value beyond its type.
    """
    alignment = metadata.get("general.alignment", GGUFValue("u32", types.DEFAULT_ALIGNMENT))
    if not types.is_alignment(alignment):
        raise ModelError(
            f"general.alignment is {alignment.type} {quoted(alignment.value)}, wanted a u32, a power of two"
        )
    pairs = [_string(key) + _encode(key, value) for key, value in metadata.items() if _check_key(key)]
    records: list[bytes] = []
    offsets: dict[str, int] = {}
    end = 0
    for spec in specs:
        if spec.name in offsets:
            raise ModelError(f"{spec.name}: two tensors of this name, a file holds one: drop or rename one")
        records.append(_record(spec, end))
        offsets[spec.name] = end
        end = padded(end + spec.nbytes, alignment.value)
    header = b"".join((b"GGUF", struct.pack("<IQQ", VERSION, len(records), len(pairs)), *pairs, *records))
    start = padded(len(header), alignment.value)
    return FileLayout(start + end, ((0, header),), {name: start + offset for name, offset in offsets.items()})


def gguf_shards(
    specs: Sequence[TensorSpec], metadata: Mapping[str, GGUFValue], max_shard_nbytes: int, stem: str
) -> list[tuple[str, FileLayout]]:
    """-> [(file name, layout)]: `stem.gguf`, or `stem-00001-of-0000K.gguf` and so on.

    A file holds at most `max_shard_nbytes` bytes of tensors, or one tensor that is larger.
    """
    parts = split_by_size(specs, max_shard_nbytes)
    if len(parts) == 1:
        return [(f"{stem}.gguf", gguf_layout(specs, metadata))]
    alignment = {key: value for key, value in metadata.items() if key == "general.alignment"}
    files = []
    for i, part in enumerate(parts):
        split = {
            "split.no": GGUFValue("u16", i),
            "split.count": GGUFValue("u16", len(parts)),
            "split.tensors.count": GGUFValue("i32", len(specs)),
        }
        layout = gguf_layout(part, {**(alignment if i else metadata), **split})
        files.append((f"{stem}-{i + 1:05d}-of-{len(parts):05d}.gguf", layout))
    return files


def _check_key(key: str) -> bool:
    if not key.isprintable() or not 0 < len(key.encode()) <= types.KEY_CAP:
        raise ModelError(f"{quoted(key)}: not a key for GGUF: empty, not printable, or over {types.KEY_CAP} bytes")
    return True


def _record(spec: TensorSpec, offset: int) -> bytes:
    """string name | u32 n_dims | u64 ne[n_dims], innermost first | u32 type | u64 offset."""
    number = types.TENSOR_IDS.get(spec.dtype.name)
    if number is None:
        raise ModelError(f"{spec.name}: GGUF cannot hold {spec.dtype}, only {' '.join(types.TENSOR_IDS)}")
    if not spec.name.isprintable() or not 0 < len(spec.name.encode()) < types.NAME_CAP:
        raise ModelError(f"{quoted(spec.name)}: GGUF wants tensor names of 1 to {types.NAME_CAP - 1} printable bytes")
    if not 1 <= len(spec.shape) <= types.MAX_DIMS or not all(0 < size < 1 << 63 for size in spec.shape):
        raise ModelError(
            f"{spec.name}: GGUF wants 1 to {types.MAX_DIMS} dimensions, none empty, got {list(spec.shape)}"
        )
    n_dims = len(spec.shape)
    return _string(spec.name) + struct.pack(f"<I{n_dims}QIQ", n_dims, *spec.shape[::-1], number, offset)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(key: str, value: GGUFValue) -> bytes:
    """u32 type | value, or u32 9 | u32 element type | u64 count | elements."""
    is_array = value.type.startswith("[") and value.type.endswith("]")
    element_type = value.type[1:-1] if is_array else value.type
    if element_type not in VALUE_IDS or element_type == "array":
        raise ModelError(f"{key}: the value type {quoted(value.type)} is unknown, wanted one of {' '.join(VALUE_IDS)}")
    try:
        elements = value.value if is_array else (value.value,)
        n_elements = len(elements)
        raw = _elements(element_type, elements)
    except (struct.error, OverflowError, TypeError, UnicodeEncodeError, AttributeError) as error:
        raise ModelError(f"{key}: a value does not fit into {value.type}: {error}") from error
    if n_elements == 0:
        raise ModelError(f"{key}: an empty array is what other readers stumble over: leave the key out")
    if is_array:
        return struct.pack("<IIQ", VALUE_IDS["array"], VALUE_IDS[element_type], n_elements) + raw
    return struct.pack("<I", VALUE_IDS[element_type]) + raw


def _elements(element_type: str, elements: Sequence[object]) -> bytes:
    """The elements' bytes; struct.error, TypeError and the like for one that is not of the type."""
    if isinstance(elements, GGUFArray) and elements.element_type == element_type:
        return elements.raw
    wanted = {"string": (str,), "bool": (bool,), "f32": (float, int), "f64": (float, int)}.get(element_type, (int,))
    for element in elements:
        if not isinstance(element, wanted) or (isinstance(element, bool) and element_type != "bool"):
            raise TypeError(f"{quoted(element)} is no {element_type}")
    if element_type == "string":
        return b"".join(_string(str(element)) for element in elements)
    return struct.pack(f"<{len(elements)}{SCALARS[element_type].format[1:]}", *elements)
