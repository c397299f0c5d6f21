from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from smelt.errors import FormatError, InputError, SmeltError, UnsafePickleError
from smelt.formats.pth import check_crc, open_pth

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def values_of(tensor: torch.Tensor) -> bytes:
    """The tensor's elements in row-major order."""
    return tensor.detach().contiguous().clone().view(-1).view(torch.uint8).numpy().tobytes()


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-9, 9, shape, generator=generator).to(dtype)


def saved(path: Path, value: object, **options: object) -> Path:
    torch.save(value, path, **options)
    return path


def read_whole(stored) -> bytes:
    rows = int(np.prod(stored.shape[:-1])) if stored.shape else 1
    return stored.read(0, rows).tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: DTYPES[dtype])
def test_reads_every_dtype_as_torch_wrote_it(dtype, tmp_path):
    state = {"a": some(5, 7).abs().to(dtype), "b": some(3).abs().to(dtype)}
    checkpoint = open_pth(saved(tmp_path / "a.pth", state))
    assert checkpoint.format == "pth" and checkpoint.files == (tmp_path / "a.pth",)
    for name, tensor in state.items():
        stored = checkpoint.tensors[name]
        assert (stored.dtype.name, stored.shape, stored.strides) == (DTYPES[dtype], tuple(tensor.shape), None)
        assert read_whole(stored) == values_of(tensor)


VIEWS = {
    "whole": lambda t: t,
    "transposed": lambda t: t.T,
    "left columns": lambda t: t.chunk(2, dim=1)[0],
    "right columns": lambda t: t.chunk(2, dim=1)[1],
    "upper rows": lambda t: t.chunk(2, dim=0)[0],
    "lower rows": lambda t: t.chunk(2, dim=0)[1],
    "one row": lambda t: t[3],
    "one column": lambda t: t[:, 3],
    "one column as a matrix": lambda t: t[:, 3:4],
    "one column as a row": lambda t: t[:, 3:4].T,
    "every other row": lambda t: t[::2],
    "every other column": lambda t: t[:, 1::2],
    "every third of each": lambda t: t[::3, ::3].T,
    "columns of a transposed": lambda t: t.T[:, 2:5],
    "expanded rows": lambda t: t[2:3].expand(6, -1),
    "expanded columns": lambda t: t[:, 2:3].expand(-1, 6),
    "expanded scalar": lambda t: t[1, 1].expand(4, 3),
    "expanded vector": lambda t: t[1, 1].expand(9),
    "overlapping windows": lambda t: t.view(-1).unfold(0, 4, 2),
    "a scalar": lambda t: t[4, 5],
    "three dimensions": lambda t: t.view(2, 4, 10)[1:],
    "no rows": lambda t: t[8:],
    "no columns": lambda t: t[:, 10:],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_reads_views_of_one_storage(view, dtype, tmp_path):
    whole = some(8, 10, dtype=dtype)
    tensor = VIEWS[view](whole)
    checkpoint = open_pth(saved(tmp_path / "a.pth", {"whole": whole, "view": tensor}))
    stored = checkpoint.tensors["view"]
    assert stored.shape == tuple(tensor.shape)
    assert read_whole(stored) == values_of(tensor)
    assert read_whole(checkpoint.tensors["whole"]) == values_of(whole)
    n_rows = int(np.prod(tensor.shape[:-1])) if tensor.dim() else 1
    for start in range(0, n_rows, 2):
        rows = tensor.reshape(n_rows, -1)[start : start + 3]
        assert stored.read(start, start + len(rows)).tobytes() == values_of(rows)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.view(2, 4, 10)[:, :, :5],
        lambda t: t.view(2, 4, 10).permute(2, 1, 0),
        lambda t: t.view(2, 2, 2, 10)[..., 3],
    ],
)
def test_refuses_scattered_views_of_three_dimensions_by_name(view, tmp_path):
    path = saved(tmp_path / "a.pth", {"layers.0.odd": view(some(8, 10))})
    with pytest.raises(FormatError, match=r"layers\.0\.odd.*contiguous\(\)"):
        open_pth(path)


def test_refuses_a_view_with_wide_gaps_both_ways(tmp_path):
    path = saved(tmp_path / "a.pth", {"sparse": torch.zeros(100, 1000).T[::100, ::10].T})
    with pytest.raises(FormatError, match="sparse"):
        open_pth(path)


def test_tied_tensors_lie_at_one_place(tmp_path):
    weight = some(4, 4)
    tensors = open_pth(saved(tmp_path / "a.pth", {"embed": weight, "head": weight})).tensors
    assert tensors["embed"].offset == tensors["head"].offset


def test_reads_the_dict_inside_a_training_state(tmp_path):
    state = {"model": {"w": some(2, 3)}, "optimizer": {"m": some(9)}, "step": 7}
    checkpoint = open_pth(saved(tmp_path / "a.pt", state), inside="model")
    assert list(checkpoint.tensors) == ["w"] and checkpoint.metadata["step"] == 7
    assert read_whole(checkpoint.tensors["w"]) == values_of(state["model"]["w"])
    with pytest.raises(FormatError, match="no dict under 'weights'"):
        open_pth(tmp_path / "a.pt", inside="weights")
    with pytest.raises(FormatError, match="below its top level"):
        open_pth(tmp_path / "a.pt")


def test_unwraps_parameters_and_reads_module_state(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    checkpoint = open_pth(saved(tmp_path / "a.pth", module.state_dict()))
    assert {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()} == {
        name: stored.shape for name, stored in checkpoint.tensors.items()
    }
    path = saved(tmp_path / "b.pth", {"weight": module[0].weight, "n": 3, "cfg": {"lr": 0.5, "betas": (0.9, None)}})
    checkpoint = open_pth(path)
    assert read_whole(checkpoint.tensors["weight"]) == values_of(module[0].weight)
    assert checkpoint.metadata == {"n": 3, "cfg": {"lr": 0.5, "betas": (0.9, None)}}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_many_tensors_in_every_protocol(protocol, tmp_path):
    state = OrderedDict((f"layers.{i}.weight", some(2, 1 + i % 5, dtype=torch.float16)) for i in range(300))
    checkpoint = open_pth(saved(tmp_path / "a.pth", state, pickle_protocol=protocol))
    assert list(checkpoint.tensors) == list(state)
    for name, tensor in state.items():
        assert read_whole(checkpoint.tensors[name]) == values_of(tensor)


def test_check_crc_names_a_damaged_entry_that_opening_lets_pass(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": some(5, 7)})
    check_crc(path)
    data = bytearray(path.read_bytes())
    data[open_pth(path).tensors["a"].offset] ^= 1
    path.write_bytes(data)
    open_pth(path)
    with pytest.raises(FormatError, match="data/0"):
        check_crc(path)


# Hostile files: whole ones written here, entry by entry, each told one lie.


@dataclass(frozen=True)
class Entry:
    """A zip entry as it is written; what is None tells the truth."""

    name: str
    content: bytes
    flags: int = 0x808
    method: int = 0
    crc: int | None = None
    nbytes: int | None = None
    packed: int | None = None
    local_name: str | None = None
    local_flags: int | None = None
    local_nbytes: int = 0
    local_method: int = 0
    local_extra: bytes = b""
    extra: bytes = b""
    comment: bytes = b""
    disk: int = 0
    descriptor: bytes | None = None
    gap: bytes = b""
    offset: int | None = None


def zipped(*entries: Entry, prefix: bytes = b"", comment: bytes = b"", tail: bytes = b"", **lies: int) -> bytes:
    body, directory = prefix, b""
    for e in entries:
        body += e.gap
        crc = zlib.crc32(e.content) if e.crc is None else e.crc
        nbytes = len(e.content) if e.nbytes is None else e.nbytes
        packed = nbytes if e.packed is None else e.packed
        name = e.name.encode()
        offset = len(body) if e.offset is None else e.offset
        flags = e.flags if e.local_flags is None else e.local_flags
        told = (0, e.local_nbytes, e.local_nbytes) if e.flags & 8 else (crc, packed, nbytes)
        local = (e.local_name or e.name).encode()
        body += struct.pack(
            "<4s5H3I2H", b"PK\3\4", 0, flags, e.local_method or e.method, 0, 0, *told, len(local), len(e.local_extra)
        )
        body += local + e.local_extra + e.content
        if e.flags & 8:
            body += struct.pack("<4sIII", b"PK\7\x08", crc, packed, nbytes) if e.descriptor is None else e.descriptor
        sizes = (crc, packed, nbytes, len(name), len(e.extra), len(e.comment), e.disk, 0, 0, offset)
        directory += (
            struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, e.flags, e.method, 0, 0, *sizes) + name + e.extra + e.comment
        )
    start, n = lies.get("start", len(body)), lies.get("n", len(entries))
    size = lies.get("size", len(directory))
    end = struct.pack("<4s4H2IH", b"PK\5\6", lies.get("disk", 0), 0, n, n, size, start, len(comment))
    return body + directory + end + comment + tail


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def program(key: str = "0", numel: int = 2, size: int = 2, name: str = "norm.weight") -> bytes:
    storage = (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + bytes([ord("K"), numel]) + b"tQ"
    )
    view = b"K\x00" + bytes([ord("K"), size]) + b"\x85K\x01\x85\x89}"
    return b"\x80\x02}" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


PICKLE = Entry("m/data.pkl", program())
DATA = Entry("m/data/0", struct.pack("<2f", 1.5, -2.0))
ORDER = Entry("m/byteorder", b"little")
VERSION = Entry("m/version", b"3\n")
SOUND = (PICKLE, ORDER, DATA, VERSION)


def opened(tmp_path: Path, content: bytes):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    return open_pth(path)


@pytest.mark.parametrize(
    "entries",
    [
        SOUND,
        (PICKLE, DATA),
        tuple(replace(entry, flags=0) for entry in SOUND),
        (PICKLE, replace(DATA, local_extra=b"FB\x04\x00ZZZZ"), ORDER),
        (PICKLE, replace(DATA, descriptor=struct.pack("<4sIQQ", b"PK\7\x08", zlib.crc32(DATA.content), 8, 8))),
        (PICKLE, DATA, Entry("m/data/1", b"", flags=0x800)),
        (VERSION, DATA, PICKLE),
    ],
    ids=["torch 2", "torch 1", "no descriptors", "aligned", "wide descriptor", "empty entry", "another order"],
)
def test_the_hand_written_zip_is_sound(entries, tmp_path):
    checkpoint = opened(tmp_path, zipped(*entries))
    assert read_whole(checkpoint.tensors["norm.weight"]) == DATA.content
    check_crc(tmp_path / "m.pth")


def test_reads_what_pythons_zipfile_stores(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_STORED) as archive:
        for entry in SOUND:
            archive.writestr(entry.name, entry.content)
    assert read_whole(open_pth(tmp_path / "m.pth").tensors["norm.weight"]) == DATA.content


def with_pickle(content: bytes) -> bytes:
    return zipped(Entry("m/data.pkl", content), DATA)


def with_data(**lies: object) -> bytes:
    return zipped(PICKLE, replace(DATA, **lies), VERSION)


PACKED = zlib.compress(DATA.content)
EXTRA_NAME = b"\x75\x70\x09\x00\x01" + bytes(4) + b"evil"
TRICKS = {
    "name differs in the local header": (with_data(local_name="m/data/9"), "local header"),
    "longer name in the local header": (with_data(local_name="m/data/00"), "local header"),
    "flags differ in the local header": (with_data(local_flags=0), "local header"),
    "method differs in the local header": (with_data(local_method=8), "local header"),
    "size lies in the local header": (with_data(local_nbytes=4), "local header"),
    "encrypted": (with_data(flags=0x809), "encrypted"),
    "strongly encrypted": (with_data(flags=0x848), "encrypted"),
    "masked headers": (with_data(flags=0x2808), "encrypted"),
    "patch data": (with_data(flags=0x828), "encrypted"),
    "deflated": (with_data(method=8, content=PACKED, nbytes=8, packed=len(PACKED)), "compressed"),
    "stored in fewer bytes": (with_data(packed=4), "stores 4 bytes for 8"),
    "a bad CRC in data.pkl": (zipped(replace(PICKLE, crc=1), DATA), "CRC"),
    "a bad CRC in byteorder": (zipped(PICKLE, replace(ORDER, crc=1), DATA), "CRC"),
    "a descriptor with another CRC": (with_data(descriptor=struct.pack("<4sIII", b"PK\7\x08", 1, 8, 8)), "descriptor"),
    "a descriptor with another size": (
        with_data(descriptor=struct.pack("<4sIII", b"PK\7\x08", zlib.crc32(DATA.content), 8, 9)),
        "descriptor",
    ),
    "no descriptor": (with_data(descriptor=b""), "descriptor"),
    "a name twice": (zipped(PICKLE, DATA, DATA), "two entries"),
    "two data.pkl": (zipped(PICKLE, DATA, Entry("m/data.pkl", b"\x80\x02N.")), "two entries"),
    "two folders": (zipped(PICKLE, DATA, Entry("n/data.pkl", program())), "one folder"),
    "no folder": (zipped(Entry("data.pkl", program())), "archive/entry"),
    "an absolute name": (zipped(PICKLE, Entry("/m/data/0", DATA.content)), "archive/entry"),
    "a parent's name": (zipped(PICKLE, Entry("m/../data/0", DATA.content)), "archive/entry"),
    "a backslash": (zipped(PICKLE, Entry("m\\..\\data", DATA.content)), "archive/entry"),
    "a NUL in a name": (zipped(PICKLE, Entry("m/data/0\0.txt", DATA.content)), "archive/entry"),
    "an escape sequence in a name": (zipped(PICKLE, Entry("m/\x1b[2J", DATA.content)), "archive/entry"),
    "an empty part in a name": (zipped(PICKLE, Entry("m//0", DATA.content)), "archive/entry"),
    "a folder as an entry": (zipped(PICKLE, Entry("m/data/", b"")), "archive/entry"),
    "an unmarked name that is not ASCII": (zipped(PICKLE, Entry("m/\u00e9", b"1", flags=8)), "not text"),
    "a second name in the extra field": (with_data(extra=EXTRA_NAME), "second name"),
    "a second name in the local extra field": (with_data(local_extra=EXTRA_NAME), "second name"),
    "an extra field that is cut": (with_data(extra=b"\x01\x00\xff"), "extra field"),
    "an extra field with a long length": (with_data(extra=b"FB\xff\x00Z"), "extra field"),
    "overlap": (zipped(PICKLE, DATA, replace(VERSION, offset=0)), "overlaps"),
    "nested entries": (zipped(PICKLE, replace(DATA, offset=10)), "overlaps"),
    "a gap": (zipped(PICKLE, replace(DATA, gap=b"hidden")), "unaccounted"),
    "bytes before the first entry": (zipped(*SOUND, prefix=b"PK\3\4MZ"), "unaccounted"),
    "bytes before the directory": (zipped(*SOUND, Entry("m/x", b"1", descriptor=b"")), "descriptor"),
    "a comment": (zipped(*SOUND, comment=b"hello"), "comment follow"),
    "a comment that holds an end record": (zipped(*SOUND, comment=zipped(*SOUND)[-22:]), "overlaps|does not end"),
    "a comment on an entry": (with_data(comment=b"x"), "comment"),
    "bytes after the end": (zipped(*SOUND, tail=b"\0"), "bytes or a comment follow"),
    "two zips in a row": (zipped(*SOUND) * 2, "does not end"),
    "another disk": (with_data(disk=1), "another disk"),
    "a split archive": (zipped(*SOUND, disk=1), "split"),
    "fewer entries than there are": (zipped(*SOUND, n=3), "follow the 3 entries"),
    "more entries than there are": (zipped(*SOUND, n=5), "no entry|ends before"),
    "65,535 entries": (zipped(*SOUND, n=0xFFFF), "zip64"),
    "a directory too early": (zipped(*SOUND, start=0), "does not end"),
    "a directory past the end": (zipped(*SOUND, start=0xFFFFFFF0), "does not end"),
    "a directory of no bytes": (zipped(*SOUND, size=0), "does not end"),
    "zip64 sizes that are not there": (zipped(*SOUND, size=0xFFFFFFFF), "zip64"),
    "an entry of 4 GiB that is not there": (with_data(nbytes=0xFFFFFFFE, packed=0xFFFFFFFE), "runs into"),
    "an entry that refers to zip64": (with_data(nbytes=0xFFFFFFFF), "zip64 sizes"),
    "a zip64 size of 2**64 - 1": (
        with_data(nbytes=0xFFFFFFFF, packed=0xFFFFFFFF, extra=b"\x01\x00\x10\x00" + b"\xff" * 16),
        "runs into",
    ),
    "zip64 sizes that nothing asks for": (with_data(extra=b"\x01\x00\x08\x00" + bytes(8)), "zip64 sizes"),
    "an offset past the end": (with_data(offset=0xFFFFFFF0), "begins at byte|unaccounted"),
    "no entries": (zipped() + b"", "not of torch.save|too few"),
    "no data.pkl": (zipped(DATA), "one folder with data.pkl"),
    "TorchScript": (zipped(*SOUND, Entry("m/constants.pkl", b"\x80\x02).")), "TorchScript"),
    "TorchScript code": (zipped(*SOUND, Entry("m/code/__torch__.py", b"1")), "TorchScript"),
    "big-endian": (zipped(PICKLE, DATA, Entry("m/byteorder", b"big")), "byteorder"),
    "a byteorder of a megabyte": (zipped(PICKLE, DATA, Entry("m/byteorder", b"l" * (1 << 20))), "byteorder"),
    "a storage that is not there": (with_pickle(program(key="1")), "data/1"),
    "a storage outside the archive": (with_pickle(program(key="../../../etc/passwd")), "is not in the file"),
    "a storage that lies about its size": (with_pickle(program(numel=3)), "should have 12 bytes, the zip entry has 8"),
    "a tensor beyond its storage": (with_pickle(program(size=3)), "beyond its storage"),
    "a name with an escape sequence": (with_pickle(program(name="\x1b[2Jnorm")), "not printable"),
    "an empty name": (with_pickle(program(name="")), "is empty"),
    "a list": (with_pickle(b"\x80\x02]."), "list"),
    "a number as a name": (with_pickle(b"\x80\x02}K\x01Ns."), "not a tensor's name"),
    "no tensors": (with_pickle(b"\x80\x02}" + text("a") + b"Ns."), "no tensors"),
    "tensors below the top level": (with_pickle(b"\x80\x02}" + text("model") + program()[2:-1] + b"s."), "inside 'model'"),
    "data.pkl of 9 MB": (with_pickle(b"\x80\x02" + bytes(9 << 20)), "at most"),
    "a pickle that asks for more": (with_pickle(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00atR."), "os.system"),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_refuses_zip_and_storage_tricks(trick, tmp_path):
    content, wanted = TRICKS[trick]
    with pytest.raises(FormatError, match=wanted) as caught:
        opened(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "m.pth")) and "\n" not in message and message.isprintable()


def test_the_zip64_end_record_has_to_agree(tmp_path):
    content = saved(tmp_path / "a.pth", {"a": some(3)}).read_bytes()
    record = len(content) - 22 - 20 - 56
    assert content[record : record + 4] == b"PK\6\6"
    for at in [*range(record, record + 12), *range(record + 16, len(content) - 22)]:
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        with pytest.raises(FormatError):
            opened(tmp_path, bytes(damaged))


ELSEWHERE = {
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "a web page": (b"\n<!DOCTYPE html><html><body>403</body></html>", "web page"),
    "an empty file": (b"", "empty"),
    "a GGUF file": (b"GGUF" + bytes(100), "GGUF"),
    "a tar": (b"pickle".ljust(257, b"\0") + b"ustar" + bytes(250), "1.6"),
    "noise": (bytes(range(1, 200)), "not a zip"),
    "one byte": (b"P", "not a zip"),
    "an empty zip": (b"PK\5\6" + bytes(18), "one folder with data.pkl"),
}


@pytest.mark.parametrize("case", ELSEWHERE)
def test_says_what_a_file_is_instead(case, tmp_path):
    content, wanted = ELSEWHERE[case]
    with pytest.raises(FormatError, match=wanted):
        opened(tmp_path, content)


def test_refuses_torch_files_from_before_1_6(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": some(3)}, _use_new_zipfile_serialization=False)
    with pytest.raises(FormatError, match=r"1\.6.*save it again"):
        open_pth(path)


def test_refuses_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "a.pth"))
    with pytest.raises(FormatError, match="TorchScript"):
        open_pth(tmp_path / "a.pth")


def test_refuses_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for name in ("pipe.pth", "folder.pth", "absent.pth", "/dev/zero"):
        with pytest.raises(InputError):
            open_pth(tmp_path / name)


class Payload:
    def __reduce__(self):
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", [lambda p: p, lambda p: {"w": p}, lambda p: {"w": some(2), "x": [(p,)]}])
def test_never_runs_what_torch_would_run(place, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "a.pth", place(Payload()), pickle_protocol=protocol)
    with pytest.raises(UnsafePickleError, match=r"posix\.mkdir"):
        open_pth(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(3, 3).to_sparse(),
        some(4).conj().new_zeros(2).to(torch.complex64).conj(),
    ],
    ids=["complex", "sparse", "conjugate"],
)
def test_refuses_tensors_that_are_not_plain(value, tmp_path):
    with pytest.raises(UnsafePickleError, match="torch"):
        open_pth(saved(tmp_path / "a.pth", {"a": value}))


def test_refuses_a_pending_negation(tmp_path):
    with pytest.raises(FormatError, match="negation"):
        open_pth(saved(tmp_path / "a.pth", {"a": torch._neg_view(some(4))}))


def test_every_truncation_is_an_error(tmp_path):
    content = saved(tmp_path / "a.pth", {"a": some(5, 7), "b": some(3, dtype=torch.bfloat16)}).read_bytes()
    for stop in [*range(0, 64), *range(64, len(content), 13), *range(len(content) - 110, len(content))]:
        with pytest.raises(FormatError):
            opened(tmp_path, content[:stop])


def test_every_flipped_byte_is_an_error_or_changes_nothing_but_values(tmp_path):
    path = saved(tmp_path / "a.pth", {"a": some(5, 7), "b": some(3, dtype=torch.bfloat16)})
    content = path.read_bytes()
    wanted = {name: (t.shape, t.dtype, t.offset) for name, t in open_pth(path).tensors.items()}
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        try:
            found = opened(tmp_path, bytes(damaged)).tensors
        except SmeltError:
            continue
        assert {name: (t.shape, t.dtype, t.offset) for name, t in found.items()} == wanted


def test_flips_in_the_pickle_with_a_right_crc_never_crash(tmp_path):
    content = program()
    for at in range(len(content)):
        for flip in (0x01, 0x08, 0x80):
            damaged = bytearray(content)
            damaged[at] ^= flip
            try:
                opened(tmp_path, with_pickle(bytes(damaged)))
            except SmeltError as error:
                assert "\n" not in str(error)


def test_reads_a_storage_beyond_4_gib(tmp_path):
    """As torch writes it: zip64 sizes in the directory, an offset in the local extra field, wide descriptors."""
    numel, path = (1 << 31) + 6, tmp_path / "m.pth"
    nbytes = 2 * numel
    pickled = program(name="last").replace(b"FloatStorage", b"HalfStorage")
    big = (
        b"\x80\x02}"
        + text("big")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + b"ctorch\nHalfStorage\n"
    )
    big += text("1") + text("cpu") + b"\x8a\x05" + numel.to_bytes(5, "little") + b"tQ\x8a\x05"
    big += (numel - 6).to_bytes(5, "little") + b"K\x06\x85K\x01\x85\x89}tRs"
    pickled = big + pickled[3:]
    head = zipped(Entry("m/data.pkl", pickled))
    head = head[: head.index(b"PK\1\2")]
    wide = struct.pack("<HHQQ", 1, 16, nbytes, 0)
    second = len(head)
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, 8, len(wide)) + b"m/data/1" + wide
    third = second + len(local) + nbytes + 24
    wide = struct.pack("<HHQ", 1, 8, third)
    local_third = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0x808, 0, 0, 0, 0, 0, 0, 8, len(wide)) + b"m/data/0" + wide
    small = b"\x00\x3c\x00\x40"
    body = local_third + small + struct.pack("<4sIQQ", b"PK\7\x08", zlib.crc32(small), 4, 4)
    start = third + len(body)

    def central(name: bytes, crc: int, sizes: int, offset: int, extra: bytes) -> bytes:
        fields = (crc, sizes, sizes, len(name), len(extra), 0, 0, 0, 0, offset)
        return struct.pack("<4s6H3I5H2I", b"PK\1\2", 0, 0, 0x808, 0, 0, 0, *fields) + name + extra

    maximum = 0xFFFFFFFF
    directory = central(b"m/data.pkl", zlib.crc32(pickled), len(pickled), 0, b"")
    directory += central(b"m/data/1", 7, maximum, second, struct.pack("<HHQQ", 1, 16, nbytes, nbytes))
    directory += central(b"m/data/0", zlib.crc32(small), 4, maximum, struct.pack("<HHQ", 1, 8, third))
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 798, 45, 0, 0, 3, 3, len(directory), start)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
    end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 3, 3, len(directory), maximum, 0)
    with path.open("wb") as file:
        file.write(head + local)
        file.seek(nbytes - 4, os.SEEK_CUR)
        file.write(b"\x01\x02\x03\x04" + struct.pack("<4sIQQ", b"PK\7\x08", 7, nbytes, nbytes) + body + directory + end)
    tensors = open_pth(path).tensors
    assert tensors["big"].offset > 1 << 32
    assert read_whole(tensors["big"]) == bytes(8) + b"\x01\x02\x03\x04"
    assert read_whole(tensors["last"]) == small
