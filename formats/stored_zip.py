"""A zip whose entries are stored, not compressed: the container of torch.save, read so that nothing can hide in it.

    | local header, name, extra | data | descriptor |  ...  | central directory | zip64 record, locator | end record |
      30 bytes    name   extra    n      0, 16 or 24          46 bytes + name...   56 + 20, if any         22 bytes

Names, sizes and CRCs come from the central directory, and each local header has to agree with it. torch sets flag bit
3: its local headers leave CRC and sizes zero, and a descriptor after the data repeats them (8-byte sizes beyond 4 GiB);
an empty entry has neither. Data begins after the *local* extra field, whose filler aligns it to 64 bytes.
The entries tile the file from byte 0 to the directory: no overlap, gap, prefix or comment, and nothing after the end.
Source: PKWARE, APPNOTE 4.3 and 4.5.3; PyTorch, caffe2/serialize/inline_container.cc over miniz.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import FormatError
from .checkpoint import SPAN, SourceFile

LOCAL = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, packed, size, name, extra
CENTRAL = struct.Struct("<4s6H3I5H2I")  # two versions and, after the local fields: comment, disk, attributes, offset
END = struct.Struct("<4s4H2IH")  # disk, its start, entries here, entries, directory size, offset, comment
LOCATOR = struct.Struct("<4sIQI")  # disk, offset of the zip64 record, disks
END64 = struct.Struct("<4sQ2H2I4Q")  # rest's size, versions, disk, its start, entries here, entries, size, offset
DESCRIPTORS = (struct.Struct("<4sIII"), struct.Struct("<4sIQQ"))  # crc, packed, size

ENTRIES = 32_768  # each costs two or three reads; a Meta shard has about 1,150
DIRECTORY_NBYTES = 8 << 20
FLAG_DESCRIPTOR = 1 << 3
FLAG_UTF8 = 1 << 11
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
EXTRA_ZIP64, EXTRA_UNICODE_NAME = 0x0001, 0x7075


@dataclass(frozen=True)
class Member:
    """An entry's data: `nbytes` bytes at `offset` of the file, with the CRC-32 that the directory gives."""

    name: str
    offset: int
    nbytes: int
    crc: int


@dataclass(frozen=True)
class _Entry:
    """What the central directory says of an entry; `offset` is that of its local header."""

    raw_name: bytes
    name: str
    flags: int
    crc: int
    nbytes: int
    offset: int


def read_members(file: SourceFile) -> dict[str, Member]:
    """The entries by name, in the order of the file; FormatError for everything that torch.save does not write."""
    n_entries, start, stop = _find_directory(file)
    entries = _read_directory(file, n_entries, start, stop)
    cursor = 0
    members: dict[str, Member] = {}
    for entry in sorted(entries, key=lambda entry: entry.offset):
        if entry.offset != cursor:
            what = "overlaps the entry before it" if entry.offset < cursor else "leaves bytes unaccounted for before it"
            raise _error(file, f"{_shown(entry.name)} at byte {entry.offset} {what} (wanted {cursor})")
        members[entry.name], cursor = _locate(file, entry, start)
    if cursor != start:
        raise _error(file, f"its directory is at byte {start}, its entries end at {cursor}")
    return members


def check_member_crc(file: SourceFile, member: Member) -> None:
    """Read a member's data through once; FormatError where its CRC-32 is not the directory's."""
    crc = 0
    for start in range(0, member.nbytes, SPAN):
        crc = zlib.crc32(file.read(member.offset + start, min(SPAN, member.nbytes - start)), crc)
    if crc != member.crc:
        raise _error(file, f"{_shown(member.name)} has CRC {crc:08x}, its zip entry says {member.crc:08x}")


def _error(file: SourceFile, what: str) -> FormatError:
    return FormatError(
        f"{file.path}: not a zip as torch.save writes it: {what}: fetch it again, or load and re-save it"
    )


def _shown(name: str) -> str:
    return ascii(name)[:80]


def _find_directory(file: SourceFile) -> tuple[int, int, int]:
    """(number of entries, first byte of the central directory, the byte after it), from the end of the file."""
    at = file.nbytes - END.size
    if at < 0:
        raise _error(file, f"{file.nbytes} bytes are too few")
    signature, disk, first_disk, here, total, nbytes, offset, comment = END.unpack(file.read(at, END.size))
    if signature != b"PK\x05\x06" or comment:
        raise _error(
            file, f"no end record in its last {END.size} bytes: it was cut short, or bytes or a comment follow"
        )
    told = (disk, first_disk, here, total, nbytes, offset)
    if at >= LOCATOR.size + END64.size and file.read(at - LOCATOR.size, 4) == b"PK\x06\x07":
        at -= LOCATOR.size + END64.size
        told = _read_zip64_record(file, at, told)
    elif MAX16 in told[:4] or MAX32 in told[4:]:
        raise _error(file, "its end record refers to a zip64 record that is not there")
    disk, first_disk, here, total, nbytes, offset = told
    if disk or first_disk or here != total:
        raise _error(file, "it is one part of a split archive")
    if offset + nbytes != at:
        raise _error(
            file, f"its directory of {nbytes} bytes at {offset} does not end at {at}, where the end records are"
        )
    if total > ENTRIES or nbytes > DIRECTORY_NBYTES:
        raise _error(file, f"{total} entries in {nbytes} bytes, at most {ENTRIES} in {DIRECTORY_NBYTES} are read")
    return total, offset, at


def _read_zip64_record(file: SourceFile, at: int, told: tuple[int, ...]) -> tuple[int, int, int, int, int, int]:
    """The six numbers of the end record in full width; those that it gives itself have to be the same."""
    signature, rest, _, _, disk, first_disk, here, total, nbytes, offset = END64.unpack(file.read(at, END64.size))
    _, locator_disk, record_at, disks = LOCATOR.unpack(file.read(at + END64.size, LOCATOR.size))
    if signature != b"PK\x06\x06" or rest != END64.size - 12 or record_at != at or locator_disk or disks != 1:
        raise _error(file, f"its zip64 record is not the one at byte {at}")
    full = (disk, first_disk, here, total, nbytes, offset)
    for short, wide, absent in zip(told, full, (MAX16,) * 4 + (MAX32,) * 2, strict=True):
        if short not in (wide, absent):
            raise _error(file, f"its end record says {short} where its zip64 record says {wide}")
    return full


def _read_directory(file: SourceFile, n_entries: int, start: int, stop: int) -> list[_Entry]:
    content = file.read(start, stop - start)
    entries: dict[str, _Entry] = {}
    at = 0
    for _ in range(n_entries):
        if at + CENTRAL.size > len(content):
            raise _error(file, f"its directory ends before its {n_entries} entries")
        signature, *head = CENTRAL.unpack_from(content, at)
        if signature != b"PK\x01\x02":
            raise _error(file, f"its directory has no entry at byte {start + at}")
        name_nbytes, extra_nbytes, comment_nbytes = head[9:12]
        tail = content[at + CENTRAL.size : at + CENTRAL.size + name_nbytes + extra_nbytes]
        entry = _parse_entry(file, head, tail[:name_nbytes], tail[name_nbytes:])
        if comment_nbytes or len(tail) != name_nbytes + extra_nbytes:
            raise _error(file, f"{_shown(entry.name)} has a comment, or a directory entry that is cut short")
        if entry.name in entries:
            raise _error(file, f"two entries are named {_shown(entry.name)}")
        entries[entry.name] = entry
        at += CENTRAL.size + len(tail)
    if at != len(content):
        raise _error(file, f"{len(content) - at} bytes follow the {n_entries} entries of its directory")
    return list(entries.values())


def _parse_entry(file: SourceFile, head: Sequence[int], raw_name: bytes, extra: bytes) -> _Entry:
    _, _, flags, method, _, _, crc, packed, nbytes, _, _, _, disk, _, _, offset = head
    name = _parse_name(file, raw_name, flags)
    if flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8):
        raise _error(file, f"{_shown(name)} is encrypted or patched (flags 0x{flags:04x})")
    if method:
        raise _error(
            file,
            f"{_shown(name)} is compressed (method {method}), as in TorchScript (save its state_dict()) or a repacked zip",
        )
    wide = _parse_extra(file, name, extra).get(EXTRA_ZIP64, b"")
    if len(wide) != 8 * (nbytes, packed, offset).count(MAX32):
        raise _error(
            file, f"{_shown(name)} has {len(wide)} bytes of zip64 sizes, not one for each value of 32 set bits"
        )
    nbytes, packed, offset = _widen((nbytes, packed, offset), wide)
    if packed != nbytes:
        raise _error(file, f"{_shown(name)} stores {packed} bytes for {nbytes}")
    if disk:
        raise _error(file, f"{_shown(name)} lies on another disk")
    return _Entry(raw_name, name, flags, crc, nbytes, offset)


def _parse_name(file: SourceFile, raw: bytes, flags: int) -> str:
    """An entry's name: printable, relative, without `..`; it is only ever compared, never used as a path."""
    try:
        name = raw.decode("utf-8" if flags & FLAG_UTF8 else "ascii")
    except UnicodeDecodeError:
        raise _error(file, f"the entry name {ascii(raw)[:80]} is not text") from None
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise _error(file, f"the entry name {_shown(name)} is not of the form archive/entry")
    return name


def _widen(short: tuple[int, ...], wide: bytes) -> tuple[int, ...]:
    """`short` with each value that does not fit into 32 bits taken, in order, from the zip64 extra field `wide`."""
    values = (value for (value,) in struct.iter_unpack("<Q", wide))
    return tuple(next(values) if value == MAX32 else value for value in short)


def _parse_extra(file: SourceFile, name: str, extra: bytes) -> dict[int, bytes]:
    """{id: content} of an extra field, a list of (u16 id, u16 length, content)."""
    fields: dict[int, bytes] = {}
    at = 0
    while at < len(extra):
        key, nbytes = struct.unpack_from("<HH", extra, at) if at + 4 <= len(extra) else (0, MAX16)
        at += 4 + nbytes
        if at > len(extra) or key in fields or key == EXTRA_UNICODE_NAME:
            raise _error(file, f"{_shown(name)} has an extra field that is cut short, repeated or a second name")
        fields[key] = extra[at - nbytes : at]
    return fields


def _locate(file: SourceFile, entry: _Entry, limit: int) -> tuple[Member, int]:
    """(where the entry's data lies, the byte after the entry), once its local header agrees with the directory."""
    shown = _shown(entry.name)
    if entry.offset + LOCAL.size > limit:
        raise _error(file, f"{shown} begins at byte {entry.offset}, its directory is at {limit}")
    head = LOCAL.unpack(file.read(entry.offset, LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, nbytes, name_nbytes, extra_nbytes = head
    data = entry.offset + LOCAL.size + name_nbytes + extra_nbytes
    if signature != b"PK\x03\x04" or data + entry.nbytes > limit:
        raise _error(file, f"{shown} has no local header at byte {entry.offset}, or its data runs into the directory")
    tail = file.read(entry.offset + LOCAL.size, name_nbytes + extra_nbytes)
    if tail[:name_nbytes] != entry.raw_name:
        raise _error(file, f"{shown} is named {ascii(tail[:name_nbytes])[:80]} in its local header")
    if flags != entry.flags or method:
        raise _error(file, f"{shown} has flags 0x{flags:04x} and method {method} in its local header")
    stop = data + entry.nbytes
    wide = _parse_extra(file, entry.name, tail[name_nbytes:]).get(EXTRA_ZIP64, b"")
    told = (crc, nbytes, packed)
    if entry.flags & FLAG_DESCRIPTOR:
        stop += _check_descriptor(file, entry, stop, limit)
        told = (crc or entry.crc, nbytes or entry.nbytes, packed or entry.nbytes)
    elif (nbytes, packed) == (MAX32, MAX32) and len(wide) == 16:
        told = (crc, *_widen((nbytes, packed), wide))
    if told != (entry.crc, entry.nbytes, entry.nbytes):
        raise _error(file, f"{shown} has another size or CRC in its local header than in the directory")
    return Member(entry.name, data, entry.nbytes, entry.crc), stop


def _check_descriptor(file: SourceFile, entry: _Entry, at: int, limit: int) -> int:
    """Bytes of the descriptor at `at`, which has to repeat the directory's CRC and sizes."""
    found = file.read(at, min(DESCRIPTORS[-1].size, limit - at))
    for descriptor in DESCRIPTORS:
        if entry.nbytes <= MAX32 or descriptor is DESCRIPTORS[-1]:
            wanted = descriptor.pack(b"PK\x07\x08", entry.crc, entry.nbytes, entry.nbytes)
            if found.startswith(wanted):
                return len(wanted)
    raise _error(
        file, f"the descriptor of {_shown(entry.name)} at byte {at} does not repeat its directory's CRC and sizes"
    )
