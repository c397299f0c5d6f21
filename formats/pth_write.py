"""Write a .pth or .pt: the zip that torch.save writes, with every offset known before the first tensor is.

    | header FB.. | data.pkl | descriptor | ... | header FB.. | data/0 | descriptor | ... | directory | end records |
                                                               slot     ^ crc of the slot    ^ crcs

    header     = local header with flag bit 3: no CRC, no sizes; the extra field `FB` fills up to 64 bytes with Z
    descriptor = "PK\\7\\8" | crc: u32 | size | size     u32, or u64 where size or header offset is 2**32 - 1 or more

    data.pkl   = {name: tensor, ...}, or {"model": {name: tensor, ...}, **beside}

Only descriptors and directory need the data: `pth_layout` places everything, `finish_pth` fills them in from the CRC-32 of
each slot. Slots that are written in pieces, in any order, join their CRCs with `crc32_combine`.
Source: PyTorch, caffe2/serialize/inline_container.cc; PKWARE, APPNOTE 4.3; CRC arithmetic in zlib, crc32.c.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..dtypes import Shape
from ..errors import UsageError
from .checkpoint import FileLayout, TensorSpec
from .opcodes import PICKLE_NBYTES
from .stored_zip import CENTRAL, DESCRIPTORS, END, END64, EXTRA_ZIP64, FLAG_DESCRIPTOR, FLAG_UTF8, LOCAL, LOCATOR, MAX32
from .torch_records import STORAGES, TORCH_DTYPES, UNTYPED, Global

ALIGNMENT = 64
TENSORS = 10_000  # what `opcodes` reads back, whatever their shapes
STORAGE_OF = {dtype: kind for kind, dtype in STORAGES.items() if dtype is not None}
TORCH_DTYPE_OF = {dtype: kind for kind, dtype in TORCH_DTYPES.items()}
CRC_POLYNOMIAL = 0xEDB88320  # bit-reversed: bit 31 is x**0
MODEL = "model"  # the key of the tensors where other values lie beside them

Plain = None | bool | int | float | str | list["Plain"] | dict[str, "Plain"]
Beside = Mapping[str, Plain]


@dataclass(frozen=True)
class TorchFile:
    """What one file of torch.save holds: its tensors and, where it is not their dict alone, the plain values beside them."""

    stem: str
    tensors: tuple[TensorSpec, ...]
    beside: Beside | None = None

    def layout(self) -> FileLayout:
        """`pth_layout` of it."""
        return pth_layout(self.tensors, self.stem, self.beside)

    def finish(self, crcs: Mapping[str, int]) -> tuple[tuple[int, bytes], ...]:
        """`finish_pth` of it."""
        return finish_pth(self.tensors, self.stem, crcs, self.beside)


@dataclass(frozen=True)
class _Entry:
    """One zip entry with its place: local header at `offset`, `nbytes` bytes at `data`, then its descriptor."""

    name: bytes
    content: bytes | None  # None: a slot, whose bytes come later
    nbytes: int
    offset: int
    header: bytes

    @property
    def data(self) -> int:
        return self.offset + len(self.header)

    @property
    def wide(self) -> bool:
        """Whether a size or an offset of it needs 64 bits."""
        return self.nbytes >= MAX32 or self.offset >= MAX32

    @property
    def stop(self) -> int:
        return self.data + self.nbytes + (DESCRIPTORS[self.wide].size if self.nbytes else 0)

    @property
    def flags(self) -> int:
        return FLAG_UTF8 | (FLAG_DESCRIPTOR if self.nbytes else 0)


def pth_layout(tensors: Sequence[TensorSpec], stem: str, beside: Beside | None = None) -> FileLayout:
    """Every byte of `<stem>.pth` but the CRCs of its slots; a slot begins at a multiple of 64 bytes.

    beside  plain values beside the tensors, which are then under "model"

    UsageError for a block type, which torch has none of, a repeated name or a stem that is no plain name.
    """
    entries = _place(tensors, stem, beside)
    pieces: list[tuple[int, bytes]] = []
    for entry in entries:
        pieces.append((entry.offset, entry.header))
        if entry.content is not None:
            pieces.append((entry.data, entry.content + _descriptor(entry, zlib.crc32(entry.content))))
    nbytes = entries[-1].stop + len(_directory(entries, [0] * len(entries)))
    names = [entry.data for entry in entries if entry.content is None]
    return FileLayout(nbytes, tuple(pieces), {spec.name: at for spec, at in zip(tensors, names, strict=True)})


def finish_pth(
    tensors: Sequence[TensorSpec], stem: str, crcs: Mapping[str, int], beside: Beside | None = None
) -> tuple[tuple[int, bytes], ...]:
    """The pieces that `pth_layout` left out, from each tensor's CRC-32: a descriptor behind each slot, and the directory."""
    entries = _place(tensors, stem, beside)
    slots = iter(tensors)
    found = [zlib.crc32(e.content) if e.content is not None else crcs[next(slots).name] for e in entries]
    pieces = [
        (entry.data + entry.nbytes, _descriptor(entry, crc))
        for entry, crc in zip(entries, found, strict=True)
        if entry.content is None and entry.nbytes
    ]
    return (*pieces, (entries[-1].stop, _directory(entries, found)))


def crc32_combine(first: int, second: int, second_nbytes: int) -> int:
    """CRC-32 of A + B from those of A and B: crc(A) * x**(8 * len(B)) + crc(B), modulo the CRC's polynomial."""
    return _multiply(first, _power(8 * second_nbytes)) ^ second


@lru_cache(4096)  # pieces of one tensor have one length, so all but the first combination is a single product
def _power(n: int) -> int:
    """x**n modulo the CRC's polynomial, by squaring."""
    power, square = 1 << 31, 1 << 30  # x**0, x**1
    while n:
        if n & 1:
            power = _multiply(power, square)
        square = _multiply(square, square)
        n >>= 1
    return power


def _multiply(a: int, b: int) -> int:
    """a * b modulo the CRC's polynomial, over GF(2), bit-reversed."""
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = b >> 1 ^ (CRC_POLYNOMIAL if b & 1 else 0)
    return product


def _place(tensors: Sequence[TensorSpec], stem: str, beside: Beside | None) -> list[_Entry]:
    """Everything in torch.save's order: the pickle, what describes the format, the storages, the version."""
    if not stem.isprintable() or stem in ("", ".", "..") or "/" in stem or "\\" in stem:
        raise UsageError(f"{ascii(stem)[:80]} cannot name the folder inside a .pth: give a plain file name")
    if len({spec.name for spec in tensors}) != len(tensors):
        raise UsageError(f"{stem}.pth: two tensors of one name: rename one of them")
    pickled = b"\x80\x02" + (_tensors(tensors) if beside is None else _top(tensors, beside)) + b"."
    if len(tensors) > TENSORS or len(pickled) > PICKLE_NBYTES:
        raise UsageError(
            f"{stem}.pth: {len(tensors)} tensors, at most {TENSORS} with short names are read: use more shards"
        )
    contents: list[tuple[str, bytes | int]] = [
        ("data.pkl", pickled),
        (".format_version", b"1"),
        (".storage_alignment", b"%d" % ALIGNMENT),
        ("byteorder", b"little"),
        *((f"data/{key}", spec.nbytes) for key, spec in enumerate(tensors)),
        ("version", b"3\n"),
    ]
    entries: list[_Entry] = []
    cursor = 0
    for name, content in contents:
        slot = isinstance(content, int)
        nbytes = content if isinstance(content, int) else len(content)
        raw = f"{stem}/{name}".encode()
        entries.append(_Entry(raw, None if slot else bytes(content), nbytes, cursor, _header(raw, nbytes, cursor)))
        cursor = entries[-1].stop
    return entries


def _header(name: bytes, nbytes: int, offset: int) -> bytes:
    """A local header without CRC and sizes, whose extra field ends at a multiple of 64 bytes of the file."""
    extra = _zip64(*([nbytes, 0] if nbytes >= MAX32 else []), *([offset] if offset >= MAX32 else []))
    filler = -(offset + LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += struct.pack("<2sH", b"FB", filler) + b"Z" * filler
    flags = FLAG_UTF8 | (FLAG_DESCRIPTOR if nbytes else 0)
    return LOCAL.pack(b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def _zip64(*values: int) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", EXTRA_ZIP64, 8 * len(values), *values) if values else b""


def _descriptor(entry: _Entry, crc: int) -> bytes:
    return DESCRIPTORS[entry.wide].pack(b"PK\x07\x08", crc, entry.nbytes, entry.nbytes) if entry.nbytes else b""


def _directory(entries: Sequence[_Entry], crcs: Sequence[int]) -> bytes:
    """The central directory, the zip64 records (which torch always writes) and the end record."""
    start = entries[-1].stop
    directory = b"".join(_central(entry, crc) for entry, crc in zip(entries, crcs, strict=True))
    n = len(entries)
    record = END64.pack(b"PK\x06\x06", END64.size - 12, 45, 45, 0, 0, n, n, len(directory), start)
    locator = LOCATOR.pack(b"PK\x06\x07", 0, start + len(directory), 1)
    return directory + record + locator + END.pack(b"PK\x05\x06", 0, 0, n, n, len(directory), min(start, MAX32), 0)


def _central(entry: _Entry, crc: int) -> bytes:
    size, offset = entry.nbytes, entry.offset
    extra = _zip64(*([size, size] if size >= MAX32 else []), *([offset] if offset >= MAX32 else []))
    size, offset = min(size, MAX32), min(offset, MAX32)
    lengths = (len(entry.name), len(extra), 0)
    return (
        CENTRAL.pack(b"PK\x01\x02", 0, 0, entry.flags, 0, 0, 0, crc, size, size, *lengths, 0, 0, 0, offset)
        + entry.name
        + extra
    )


def _tensors(tensors: Sequence[TensorSpec]) -> bytes:
    """The dict of tensors in protocol 2, each with a storage of its own, as opcodes without a memo."""
    return b"}(" + b"".join(_text(spec.name) + _tensor(key, spec) for key, spec in enumerate(tensors)) + b"u"


def _top(tensors: Sequence[TensorSpec], beside: Beside) -> bytes:
    """{"model": the dict of tensors, and what lies beside it}."""
    return b"}(" + _text(MODEL) + _tensors(tensors) + b"".join(_text(k) + _plain(v) for k, v in beside.items()) + b"u"


def _plain(value: Plain) -> bytes:
    """None, a bool, a number, a text, or a list or dict of such."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return _number(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_plain, value)) + b"e"
    return b"}(" + b"".join(_text(key) + _plain(item) for key, item in value.items()) + b"u"


def _tensor(key: int, spec: TensorSpec) -> bytes:
    """_rebuild_tensor_v2((storage), 0, shape, strides, False, OrderedDict()); v3 for dtypes without a storage class."""
    dtype = spec.dtype
    if dtype not in TORCH_DTYPE_OF:
        raise UsageError(f"{spec.name}: torch has no dtype for {dtype}: a .pth holds plain dtypes, such as BF16")
    kind = STORAGE_OF.get(dtype, UNTYPED)
    numel = spec.nbytes if kind is UNTYPED else spec.nbytes // dtype.nbytes
    storage = b"(" + _text("storage") + _global(kind) + _text(str(key)) + _text("cpu") + _number(numel) + b"tQ"
    view = _number(0) + _numbers(spec.shape) + _numbers(_contiguous(spec.shape))
    rest = b"\x89" + _global(Global("collections", "OrderedDict")) + b")R"
    rest += _global(TORCH_DTYPE_OF[dtype]) if kind is UNTYPED else b""
    builder = Global("torch._utils", "_rebuild_tensor_v3" if kind is UNTYPED else "_rebuild_tensor_v2")
    return _global(builder) + b"(" + storage + view + rest + b"tR"


def _contiguous(shape: Shape) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides)) if shape else ()


def _global(wanted: Global) -> bytes:
    return f"c{wanted.module}\n{wanted.name}\n".encode()


def _text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def _number(value: int) -> bytes:
    """BININT where 31 bits do, else LONG1."""
    return (
        b"J" + struct.pack("<i", value)
        if -(1 << 31) <= value < 1 << 31
        else b"\x8a\x09" + value.to_bytes(9, "little", signed=True)
    )
