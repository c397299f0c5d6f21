"""What torch.save pickles, as inert records: two strings for a class, a zip entry for a storage, a view for a tensor.

    GLOBAL     -> Global(module, name)
    BINPERSID  -> StorageRef(dtype, key, numel)                      the zip entry `data/<key>`
    REDUCE     -> TensorRef(storage, dtype, offset, shape, strides)  offset and strides in elements, inside the storage

The tables here are the allow-list: a global that is in none of them (nor in a caller's `Policy`) ends the reading.
Source: PyTorch, torch/_utils.py and torch/serialization.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from operator import mul

from ..dtypes import DTYPES, DType, Shape
from ..errors import FormatError

DIMENSIONS = 8  # torch allows 64; no weight has more than 5
OVERLAPPING_NBYTES = 256 << 20  # an expanded view that is larger than its storage is at most this large
INT64 = 1 << 63


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle calls `module.name`: the two strings, never the object."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}")[1:-1]


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A flat buffer of `numel` elements, or of bytes where `dtype` is None, held by the zip entry `data/<key>`."""

    dtype: DType | None
    key: str
    numel: int

    def __str__(self) -> str:
        return f"data/{ascii(self.key)[1:-1][:40]} of {self.nbytes} bytes"

    @property
    def nbytes(self) -> int:
        """Bytes of the whole buffer."""
        return self.numel * (self.dtype.nbytes if self.dtype else 1)


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; `offset` and `strides` count elements and lie inside it."""

    storage: StorageRef
    dtype: DType
    offset: int
    shape: Shape
    strides: tuple[int, ...]


@dataclass(eq=False, slots=True)
class InertObject:
    """What would have been an instance of `made_by`: its arguments, state and items, and no behaviour."""

    made_by: Global
    arguments: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Policy:
    """Globals beyond those of tensors that may be named: whole names (`argparse.Namespace`) or packages (`omegaconf`).

    What they would build becomes an `InertObject`; they are no more imported or called than any other.
    """

    stubs: tuple[str, ...] = ()

    def stubs_for(self, wanted: Global) -> bool:
        """Whether `wanted` is one of the names, or lies in one of the packages."""
        name = f"{wanted.module}.{wanted.name}"
        return any(name == stub or name.startswith(f"{stub}.") for stub in self.stubs)


STRICT = Policy()
PARENT = "_parent"


def without_parent(state: object) -> object:
    """An object's state less its way back to what holds it, which omegaconf's nodes keep: no value may hold itself."""
    return {key: value for key, value in state.items() if key != PARENT} if isinstance(state, dict) else state


UNTYPED = Global("torch.storage", "UntypedStorage")
STORAGES: dict[Global, DType | None] = {UNTYPED: None} | {
    Global("torch", f"{name}Storage"): DTYPES[dtype]
    for name, dtype in (
        ("Double", "F64"),
        ("Float", "F32"),
        ("Half", "F16"),
        ("BFloat16", "BF16"),
        ("Long", "I64"),
        ("Int", "I32"),
        ("Short", "I16"),
        ("Char", "I8"),
        ("Byte", "U8"),
        ("Bool", "BOOL"),
    )
}
TORCH_DTYPES: dict[Global, DType] = {
    Global("torch", name): DTYPES[dtype]
    for name, dtype in (
        ("float64", "F64"),
        ("float32", "F32"),
        ("float16", "F16"),
        ("bfloat16", "BF16"),
        ("float8_e4m3fn", "F8_E4M3"),
        ("float8_e5m2", "F8_E5M2"),
        ("int64", "I64"),
        ("int32", "I32"),
        ("int16", "I16"),
        ("int8", "I8"),
        ("uint64", "U64"),
        ("uint32", "U32"),
        ("uint16", "U16"),
        ("uint8", "U8"),
        ("bool", "BOOL"),
    )
}


def malformed(where: str, what: str) -> FormatError:
    """The error for a pickle that no torch.save wrote."""
    return FormatError(f"{where} {what}: the file is damaged or was not written by torch.save: fetch or save it again")


def storage_ref(where: str, pid: object) -> StorageRef:
    """('storage', class, key, location, numel), a persistent id, as a record; FormatError where it is anything else."""
    if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
        raise malformed(where, "has a persistent id that is not a storage")
    _, kind, key, _, numel = pid
    if not isinstance(kind, Global) or kind not in STORAGES or not isinstance(key, str):
        raise malformed(where, "has a persistent id that is not a storage of a known type")
    return StorageRef(STORAGES[kind], key, _count(where, numel, "a storage's length"))


def _ordered_dict(where: str, arguments: tuple[object, ...]) -> object:
    if arguments:
        raise malformed(where, "fills an OrderedDict by its constructor")
    return OrderedDict()


def _parameter(where: str, arguments: tuple[object, ...]) -> object:
    """(data, requires_grad, hooks): the data."""
    if len(arguments) != 3 or not isinstance(arguments[0], TensorRef):
        raise malformed(where, "has a parameter without a tensor")
    return arguments[0]


def _tensor_v2(where: str, arguments: tuple[object, ...]) -> object:
    """(storage, offset, shape, strides, requires_grad, hooks[, metadata]) over a typed storage."""
    storage = arguments[0] if len(arguments) in (6, 7) else None
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise malformed(where, "has a tensor (_rebuild_tensor_v2) without a typed storage")
    return _view(where, storage, storage.dtype, arguments[1:4], arguments[6:])


def _tensor_v3(where: str, arguments: tuple[object, ...]) -> object:
    """(storage, offset, shape, strides, requires_grad, hooks, dtype[, metadata]) over a storage of bytes."""
    storage, kind = (arguments[0], arguments[6]) if len(arguments) in (7, 8) else (None, None)
    if not isinstance(storage, StorageRef) or storage.dtype is not None:
        raise malformed(where, "has a tensor (_rebuild_tensor_v3) without a storage of bytes")
    if not isinstance(kind, Global) or kind not in TORCH_DTYPES:
        raise malformed(where, "has a tensor (_rebuild_tensor_v3) without a dtype")
    return _view(where, storage, TORCH_DTYPES[kind], arguments[1:4], arguments[7:])


def _view(
    where: str, storage: StorageRef, dtype: DType, place: tuple[object, ...], metadata: tuple[object, ...]
) -> TensorRef:
    """The tensor at `place` = (offset, shape, strides), where it lies inside its storage."""
    if any(metadata):
        raise malformed(where, "has a tensor with metadata, such as a pending negation, that changes its values")
    offset = _count(where, place[0], "a tensor's offset")
    shape = _counts(where, place[1], "a tensor's shape")
    strides = _counts(where, place[2], "a tensor's strides")
    if len(shape) != len(strides):
        raise malformed(where, f"has a tensor of {len(shape)} dimensions with {len(strides)} strides")
    n = prod(shape)
    stop = offset + (1 + sum(map(mul, shape, strides)) - sum(strides) if n else 0)
    if stop * dtype.nbytes > storage.nbytes:
        raise malformed(where, f"has a tensor that ends beyond its storage {storage}")
    if n * dtype.nbytes > max(storage.nbytes, OVERLAPPING_NBYTES):
        raise malformed(where, f"expands its storage {storage} to more than {OVERLAPPING_NBYTES} bytes")
    return TensorRef(storage, dtype, offset, shape, strides)


def _count(where: str, value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value < INT64:  # a bool is no number here
        raise malformed(where, f"gives {what} that is not a whole number of 0 or more")
    return value


def _counts(where: str, values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > DIMENSIONS:
        raise malformed(where, f"gives {what} that is not a tuple of at most {DIMENSIONS} numbers")
    for value in values:
        if type(value) is not int or not 0 <= value < INT64:
            raise malformed(where, f"gives {what} with something that is not a whole number of 0 or more")
    return values


BUILDERS: dict[Global, Callable[[str, tuple[object, ...]], object]] = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("torch._utils", "_rebuild_parameter"): _parameter,
    Global("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    Global("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
}
