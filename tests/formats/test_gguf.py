from __future__ import annotations

import os
import struct
import tracemalloc
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from smelt.dtypes import BF16, DTYPES, F16, F32, Q4_0, Q4_K, Q8_0
from smelt.errors import FormatError, InputError, ModelError, SmeltError
from smelt.formats import gguf_read
from smelt.formats.checkpoint import FileLayout, TensorSpec
from smelt.formats.gguf import GGUFArray, GGUFMetadata, GGUFValue, gguf_layout, gguf_shards, open_gguf
from smelt.formats.gguf_types import TENSOR_IDS, VALUE_IDS

gguf = pytest.importorskip("gguf", reason="the reference reader and writer judge")

ARCHITECTURE = {"general.architecture": GGUFValue("string", "llama")}


def build(layout: FileLayout, data: dict[str, bytes]) -> bytes:
    """The file that a layout describes."""
    content = bytearray(layout.nbytes)
    for offset, raw in [*layout.pieces, *((layout.slots[name], raw) for name, raw in data.items())]:
        content[offset : offset + len(raw)] = raw
    assert len(content) == layout.nbytes
    return bytes(content)


def raw_of(spec: TensorSpec) -> bytes:
    return ((np.arange(spec.nbytes) * 31 + len(spec.name)) % 251).astype(np.uint8).tobytes()


def written(path: Path, specs: list[TensorSpec], metadata: dict[str, GGUFValue] | None = None) -> Path:
    layout = gguf_layout(specs, ARCHITECTURE if metadata is None else metadata)
    path.write_bytes(build(layout, {spec.name: raw_of(spec) for spec in specs}))
    return path


# A file spelt out by hand, so that every field can be wrong.


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: str | int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", VALUE_IDS[kind] if isinstance(kind, str) else kind) + raw


def array(kind: str | int, count: int, raw: bytes) -> bytes:
    return struct.pack("<IQ", VALUE_IDS[kind] if isinstance(kind, str) else kind, count) + raw


def record(name: str | bytes = "a", ne: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)


def spelt(
    pairs: list[bytes] | None = None,
    records: list[bytes] | None = None,
    data: int = 32,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
    order: str = "<",
) -> bytes:
    pairs = [pair("general.architecture", "string", text("llama"))] if pairs is None else pairs
    records = [record()] if records is None else records
    counts = len(records) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs
    header = magic + struct.pack(f"{order}IQQ", version, *counts) + b"".join(pairs) + b"".join(records)
    return header + bytes(-len(header) % 32) + bytes(data)


def test_golden_bytes_of_a_tiny_file() -> None:
    metadata = {"n": GGUFValue("u32", 7), "t": GGUFValue("[string]", ["é", ""])}
    content = build(gguf_layout([TensorSpec("w", (2, 3), F16)], metadata), {"w": b"0123456789ab"})
    header = bytes.fromhex(
        "47475546 03000000 0100000000000000 0200000000000000"
        "0100000000000000 6e 04000000 07000000"
        "0100000000000000 74 09000000 08000000 0200000000000000 0200000000000000 c3a9 0000000000000000"
        "0100000000000000 77 02000000 0300000000000000 0200000000000000 01000000 0000000000000000"
    )
    assert content == header + bytes(-len(header) % 32) + b"0123456789ab" + bytes(20)


def test_a_file_spelt_by_hand_opens(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(spelt())
    checkpoint = open_gguf(path)
    assert dict(checkpoint.metadata) == {"general.architecture": "llama"}
    assert [(t.shape, t.dtype, t.nbytes) for t in checkpoint.tensors.values()] == [((2, 4), F32, 32)]
    assert (checkpoint.format, checkpoint.files) == ("gguf", (path,))


def test_type_ids_and_block_sizes_are_those_of_gguf_py() -> None:
    for name, number in TENSOR_IDS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name
        assert gguf.GGML_QUANT_SIZES[kind] == (DTYPES[name].block, DTYPES[name].nbytes)
    named = {kind.value: kind.name.lower() for kind in gguf.GGUFValueType}
    short = {"uint": "u", "int": "i", "float": "f"}
    for name, number in VALUE_IDS.items():
        long = named[number].rstrip("0123456789")
        assert name == short.get(long, long) + named[number][len(long) :]


@pytest.mark.parametrize("name", TENSOR_IDS)
def test_the_reference_reads_what_we_write(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    specs = [TensorSpec("x", (3, 2, 2 * dtype.block), dtype), TensorSpec("y", (dtype.block,), dtype)]
    reader = gguf.GGUFReader(written(tmp_path / "a.gguf", specs))
    for spec, tensor in zip(specs, reader.tensors, strict=True):
        assert (tensor.name, tensor.tensor_type.name) == (spec.name, name)
        assert tuple(int(n) for n in tensor.shape) == spec.shape[::-1]
        assert tensor.data.tobytes() == raw_of(spec)


@pytest.mark.parametrize("name", TENSOR_IDS)
def test_we_read_and_write_the_bytes_of_the_reference(tmp_path: Path, name: str) -> None:
    dtype = DTYPES[name]
    specs = [TensorSpec("x", (3, 2 * dtype.block), dtype), TensorSpec("y", (5, dtype.block), dtype)]
    path = tmp_path / "reference.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    for spec in specs:
        rows = np.frombuffer(raw_of(spec), np.uint8).reshape(spec.shape[0], -1)
        writer.add_tensor(spec.name, rows, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_gguf(path)
    for spec in specs:
        tensor = checkpoint.tensors[spec.name]
        assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype)
        assert tensor.read(0, spec.shape[0]).tobytes() == raw_of(spec)
        assert (
            tensor.read(1, 3).tobytes()
            == raw_of(spec)[spec.nbytes // spec.shape[0] :][: 2 * spec.nbytes // spec.shape[0]]
        )
    metadata = {**ARCHITECTURE, "llama.block_count": GGUFValue("u32", 1)}
    assert build(gguf_layout(specs, metadata), {spec.name: raw_of(spec) for spec in specs}) == path.read_bytes()


VALUES: dict[str, GGUFValue] = {
    "u8": GGUFValue("u8", 255),
    "i8": GGUFValue("i8", -128),
    "u16": GGUFValue("u16", 65535),
    "i16": GGUFValue("i16", -32768),
    "u32": GGUFValue("u32", (1 << 32) - 1),
    "i32": GGUFValue("i32", -(1 << 31)),
    "f32": GGUFValue("f32", 0.5),
    "bool": GGUFValue("bool", True),
    "string": GGUFValue("string", "▁né\0\n"),
    "u64": GGUFValue("u64", (1 << 64) - 1),
    "i64": GGUFValue("i64", -(1 << 63)),
    "f64": GGUFValue("f64", 1e-300),
    "bools": GGUFValue("[bool]", [True, False]),
    "strings": GGUFValue("[string]", ["a", "", "é" * 200, "b" * 70000, "<0x00>"]),
    "floats": GGUFValue("[f32]", [0.5, -1000.0, float("inf")]),
    "numbers": GGUFValue("[i32]", [1, -2, 3]),
    "bytes": GGUFValue("[u8]", list(b"model")),
    "large": GGUFValue("[u64]", [(1 << 64) - 1]),
}


def test_every_value_type_comes_back_and_the_reference_agrees(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", [], VALUES)
    metadata = open_gguf(path).metadata
    plain = {key: value.tolist() if isinstance(value, GGUFArray) else value for key, value in metadata.items()}
    assert plain == {key: value.value for key, value in VALUES.items()}
    assert {key: type(value) for key, value in plain.items()} == {k: type(v.value) for k, v in VALUES.items()}
    reader = gguf.GGUFReader(path)
    assert {key: reader.fields[key].contents() for key in VALUES} == plain


def test_typed_metadata_is_written_back_to_the_same_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", [], VALUES)
    metadata = open_gguf(path).metadata
    assert isinstance(metadata, GGUFMetadata)
    assert {key: value.type for key, value in metadata.typed.items()} == {k: v.type for k, v in VALUES.items()}
    assert build(gguf_layout([], metadata.typed), {}) == path.read_bytes()


def test_an_array_is_a_sequence_that_decodes_on_demand(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(10)]
    values = {"words": GGUFValue("[string]", words), "ids": GGUFValue("[u16]", list(range(10)))}
    metadata = open_gguf(written(tmp_path / "a.gguf", [], values)).metadata
    found = metadata["words"]
    assert len(found) == 10
    assert (found[3], found[-1], found[2:4], list(found)) == ("w3", "w9", ["w2", "w3"], words)
    assert "w7" in found
    assert found.index("w7") == 7
    with pytest.raises(IndexError):
        found[10]
    ids = metadata["ids"]
    assert (ids[3], ids[-1], ids[8:], ids.numbers().sum()) == (3, 9, [8, 9], 45)
    assert type(ids[3]) is int
    assert found == metadata["words"]
    assert found != metadata["ids"]


def test_a_string_that_is_not_utf8_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(spelt([pair("t", "array", array("string", 2, text("a") + text(b"\xff")))]))
    tokens = open_gguf(path).metadata["t"]
    assert tokens[0] == "a"
    with pytest.raises(FormatError, match=r"a\.gguf: t: string 1 of the array is not UTF-8"):
        tokens[1]


lengths = st.one_of(st.integers(0, 20), st.integers(250, 260), st.sampled_from([0, 255, 256, 65536, 100_000]))


@given(st.lists(lengths, max_size=60), st.integers(1, 7), st.integers(24, 4096))
def test_string_arrays_of_any_lengths_are_walked_right(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], stride: int, first_read: int
) -> None:
    words = [chr(ord("a") + i % 26) * size for i, size in enumerate(sizes)]
    values = {"words": GGUFValue("[string]", words), "after": GGUFValue("u32", 9)} if words else {}
    path = written(tmp_path_factory.mktemp("walk") / "a.gguf", [TensorSpec("x", (4,), F32)], values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_read, "STRIDE", stride)
        patch.setattr(gguf_read, "FIRST_READ", first_read)
        checkpoint = open_gguf(path)
    if words:
        assert checkpoint.metadata["words"].tolist() == words
        assert checkpoint.metadata["after"] == 9
    assert checkpoint.tensors["x"].read(0, 1).tobytes() == raw_of(TensorSpec("x", (4,), F32))


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=15).filter(str.isprintable)


@st.composite
def any_spec(draw: st.DrawFn) -> TensorSpec:
    dtype = DTYPES[draw(st.sampled_from(sorted(TENSOR_IDS)))]
    outer = draw(st.lists(st.integers(1, 3), max_size=3))
    return TensorSpec(draw(names), (*outer, dtype.block * draw(st.integers(1, 3))), dtype)


@given(st.lists(any_spec(), max_size=5, unique_by=lambda spec: spec.name), st.sampled_from([8, 32, 64, 4096]))
def test_what_is_written_is_what_both_readers_find(
    tmp_path_factory: pytest.TempPathFactory, specs: list[TensorSpec], alignment: int
) -> None:
    metadata = {**ARCHITECTURE, "general.alignment": GGUFValue("u32", alignment)}
    path = written(tmp_path_factory.mktemp("roundtrip") / "a.gguf", specs, metadata)
    found = open_gguf(path).tensors
    assert list(found) == [spec.name for spec in specs]
    reference = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for spec in specs:
        tensor = found[spec.name]
        assert (tensor.shape, tensor.dtype, tensor.offset % alignment) == (spec.shape, spec.dtype, 0)
        assert tensor.read(0, prod(spec.shape[:-1])).tobytes() == raw_of(spec)
        assert reference[spec.name].data.tobytes() == raw_of(spec)
        assert tuple(int(n) for n in reference[spec.name].shape) == spec.shape[::-1]


def test_version_2_is_read_like_version_3(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(spelt(version=2))
    assert open_gguf(path).tensors["a"].shape == (2, 4)


def test_the_last_tensor_need_not_be_padded(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(spelt(records=[record(ne=(3,))], data=12))
    assert open_gguf(path).tensors["a"].read(0, 1).shape == (1, 12)


def test_a_file_of_keys_alone_may_end_with_them(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    whole = spelt(records=[], data=0)
    for content in (whole, whole.rstrip(b"\0")):
        path.write_bytes(content)
        assert open_gguf(path).metadata["general.architecture"] == "llama"


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def aligned(kind: str, raw: bytes) -> bytes:
    return spelt([pair("general.alignment", kind, raw)], data=64)


BIG = 1 << 63
HOSTILE: dict[str, bytes] = {
    "bad magic": spelt(magic=b"FUGG"),
    "magic alone": b"GGUF",
    "three bytes": b"GGU",
    "version 0": spelt(version=0),
    "version 1": spelt(version=1),
    "version 4": spelt(version=4),
    "big-endian": spelt(order=">"),
    "24 bytes of zero counts but cut": spelt([], [], 0)[:23],
    "n_tensors 2^64 - 1": spelt(n_tensors=(1 << 64) - 1),
    "n_tensors one too many": spelt(n_tensors=2, data=0),
    "n_tensors too few": spelt(records=[record(), record("b", offset=32)], n_tensors=1, data=64),
    "n_kv 2^64 - 1": spelt(n_pairs=(1 << 64) - 1),
    "n_kv one too many": spelt(n_pairs=2),
    "key length 2^63": spelt([struct.pack("<Q", BIG) + b"k"]),
    "key length 2^64 - 1": spelt([struct.pack("<Q", (1 << 64) - 1) + b"k"]),
    "key length over the cap": spelt([pair("k" * 65536, "u8", b"\1")]),
    "empty key": spelt([pair("", "u8", b"\1")]),
    "key with a line feed": spelt([pair("a\nb", "u8", b"\1")]),
    "key that is not utf-8": spelt([pair(b"\xff", "u8", b"\1")]),
    "duplicate key": spelt([pair("k", "u8", b"\1"), pair("k", "u8", b"\1")]),
    "value type 13": spelt([pair("k", 13, bytes(8))]),
    "value type 2^32 - 1": spelt([pair("k", (1 << 32) - 1, bytes(8))]),
    "string length 2^63": spelt([pair("k", "string", struct.pack("<Q", BIG))]),
    "string that is not utf-8": spelt([pair("k", "string", text(b"\xc3"))]),
    "bool 2": spelt([pair("k", "bool", b"\2")]),
    "array of bools with a 2": spelt([pair("k", "array", array("bool", 3, b"\0\2\1"))]),
    "array of arrays": spelt([pair("k", "array", array("array", 1, array("u8", 1, b"\1")))]),
    "array of type 13": spelt([pair("k", "array", array(13, 1, b"\1"))]),
    "array count 2^64 - 1": spelt([pair("k", "array", array("u8", (1 << 64) - 1, b"\1"))]),
    "array count 2^61 of 8 bytes": spelt([pair("k", "array", array("u64", 1 << 61, bytes(8)))]),
    "string array count 2^61": spelt([pair("k", "array", array("string", 1 << 61, text("a")))]),
    "array one element too long": spelt([pair("k", "array", array("u64", 9, bytes(8)))], [], 0),
    "string in an array of length 2^63": spelt([pair("k", "array", array("string", 1, struct.pack("<Q", BIG)))]),
    "string in an array past the end": spelt([pair("k", "array", array("string", 1, struct.pack("<Q", 250)))]),
    "alignment 0": aligned("u32", u32(0)),
    "alignment 3": aligned("u32", u32(3)),
    "alignment 2^31": aligned("u32", u32(1 << 31)),
    "alignment 2^31 without tensors": spelt([pair("general.alignment", "u32", u32(1 << 31))], []),
    "alignment of another type": aligned("u64", struct.pack("<Q", 32)),
    "alignment that is text": aligned("string", text("32")),
    "alignment that is an array": aligned("array", array("u32", 1, u32(32))),
    "alignment that differs from the file's": spelt(
        [pair("general.alignment", "u32", u32(64))], [record(), record("b", offset=32)], 64
    ),
    "empty tensor name": spelt(records=[record("")]),
    "tensor name of 64 bytes": spelt(records=[record("a" * 64)]),
    "tensor name with an escape": spelt(records=[record("\x1b[2J")]),
    "tensor name that is not utf-8": spelt(records=[record(b"\xff")]),
    "tensor name length 2^63": spelt(records=[struct.pack("<Q", BIG) + bytes(60)]),
    "duplicate tensor": spelt(records=[record(), record(offset=32)], data=64),
    "no dimensions": spelt(records=[record(ne=())]),
    "five dimensions": spelt(records=[record(ne=(2, 2, 2, 1, 1))]),
    "2^32 - 1 dimensions": spelt(records=[text("a") + u32((1 << 32) - 1) + bytes(60)]),
    "zero dimension": spelt(records=[record(ne=(0, 2))]),
    "zero second dimension": spelt(records=[record(ne=(4, 0))]),
    "negative dimension": spelt(records=[record(ne=((1 << 64) - 1, 2))]),
    "product wraps: 2^32 x 2^32": spelt(records=[record(ne=(1 << 32, 1 << 32))]),
    "product wraps: 2^63 - 1 x 2": spelt(records=[record(ne=(BIG - 1, 2))]),
    "product wraps: 2^61 x 8": spelt(records=[record(ne=(1 << 61, 8))]),
    "bytes wrap: 2^62 floats": spelt(records=[record(ne=(1 << 62,))]),
    "padded sum wraps": spelt(records=[record(ne=(BIG - 1,), kind=24), record("b", (BIG - 1,), 24, BIG)]),
    "tensor too large": spelt(records=[record(ne=(4, 3))]),
    "row that is no whole block": spelt(records=[record(ne=(33, 2), kind=2)], data=64),
    "row of K-quants of 32": spelt(records=[record(ne=(32,), kind=12)]),
    "retired type 4": spelt(records=[record(kind=4)]),
    "retired type 31": spelt(records=[record(ne=(32,), kind=31)]),
    "type 2^32 - 1": spelt(records=[record(kind=(1 << 32) - 1)]),
    "offset unaligned": spelt(records=[record(offset=4)]),
    "gap at the beginning": spelt(records=[record(offset=32)], data=64),
    "gap between": spelt(records=[record(), record("b", offset=64)], data=96),
    "overlap": spelt(records=[record(), record("b", offset=0)], data=64),
    "reversed": spelt(records=[record(offset=32), record("b", offset=0)], data=64),
    "offset past the end": spelt(records=[record(offset=1 << 40)]),
    "offset 2^64 - 32": spelt(records=[record(offset=(1 << 64) - 32)]),
    "not enough data": spelt(data=31),
    "no data": spelt(data=0),
    "trailing data": spelt(data=33),
    "trailing data after padding": spelt(records=[record(ne=(3,))], data=33),
    "data without tensors": spelt(records=[], data=1),
    "empty file": b"",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"<!doctype html>\n<html></html>",
    "safetensors": struct.pack("<Q", 2) + b"{}",
    "ggml before gguf": b"tjgg" + bytes(60),
    "text": b"hello\nthis is no model",
}


def assert_refused(path: Path, error: type[SmeltError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_a_malformed_file_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert len(assert_refused(path)) < 1000


def test_says_that_a_file_is_big_endian(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(spelt(order=">"))
    assert "big-endian" in assert_refused(path)


def test_names_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(HOSTILE["lfs pointer"])
    assert "git lfs pull" in assert_refused(path)


FULL = {
    **ARCHITECTURE,
    "general.alignment": GGUFValue("u32", 32),
    "llama.rope": GGUFValue("f32", 1e4),
    "yes": GGUFValue("bool", True),
    "tokens": GGUFValue("[string]", ["a", "bc"]),
    "ids": GGUFValue("[i32]", [1, 2]),
}
FULL_SPECS = [TensorSpec("a", (2, 3), F16), TensorSpec("q", (32,), Q8_0)]


def test_every_cut_of_the_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", FULL_SPECS, FULL)
    content = path.read_bytes()
    slack = -FULL_SPECS[-1].nbytes % 32  # the last tensor's padding may be missing
    for size in range(len(content) - slack):
        path.write_bytes(content[:size])
        assert_refused(path)


def everything(metadata: Any) -> dict[str, Any]:
    """Every value decoded, as it would be when used."""
    return {key: value.tolist() if isinstance(value, GGUFArray) else value for key, value in metadata.items()}


def test_every_flipped_header_byte_is_refused_or_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", FULL_SPECS, FULL)
    content = path.read_bytes()
    header = len(gguf_layout(FULL_SPECS, FULL).pieces[0][1])
    accepted = 0
    for place in range(header):
        for mask in (0x01, 0x02, 0x04, 0x80, 0xFF):
            flipped = bytearray(content)
            flipped[place] ^= mask
            path.write_bytes(flipped)
            try:
                found = open_gguf(path)
                values = everything(found.metadata)
            except SmeltError as error:
                assert "\n" not in str(error)
                continue
            accepted += 1
            reference = gguf.GGUFReader(path)
            assert [(t.name, t.data_offset, t.n_bytes) for t in reference.tensors] == [
                (t.name, t.offset, t.nbytes) for t in found.tensors.values()
            ]
            for key, value in values.items():
                assert value == [] or repr(value) == repr(reference.fields[key].contents())
    assert accepted > 0


@given(st.binary(max_size=150), st.integers(0, 2), st.integers(0, 3))
def test_arbitrary_headers_are_refused_or_accepted_by_the_reference_too(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, n_tensors: int, n_pairs: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + body)
    try:
        open_gguf(path)
    except SmeltError:
        return
    gguf.GGUFReader(path)


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.gguf"
    os.mkfifo(pipe)
    (tmp_path / "folder.gguf").mkdir()
    for path in (pipe, tmp_path / "folder.gguf", Path("/dev/zero")):
        assert "not a regular file" in assert_refused(path, InputError)
    assert "cannot be opened" in assert_refused(tmp_path / "absent.gguf", InputError)


@pytest.mark.parametrize(
    "content",
    [
        spelt([pair("k", "string", struct.pack("<Q", 1 << 30))], [], 0),
        spelt([pair("k", "array", array("string", 1 << 30, b""))], [], 0),
        spelt([pair("k", "array", array("string", 1 << 63, b""))], [], 0),
        spelt([pair("k", "array", array("u8", 1 << 39, b""))], [], 0),
        spelt([pair("k", "array", array("u64", 1 << 36, b""))], [], 0),
        spelt(n_tensors=1 << 34),
        spelt(),
    ],
)
def test_a_sparse_file_of_a_terabyte_is_refused_without_filling_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.write(content)
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        assert_refused(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_strings_never_make_the_header_longer_than_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_read, "FIRST_READ", 64)
    monkeypatch.setattr(gguf_read, "HEADER_CAP", 1000)
    path = tmp_path / "a.gguf"
    for word, count in (("", 120), ("a" * 300, 4)):
        for n, fits in ((count // 2, True), (count, False)):
            path.write_bytes(spelt([pair("k", "array", array("string", n, text(word) * n))], [], 0))
            if fits:
                assert open_gguf(path).metadata["k"].tolist() == [word] * n
            else:
                assert "at most 1000 are allowed" in assert_refused(path)


# split sets


SPECS = [
    TensorSpec("a", (8,), F32),
    TensorSpec("b", (2, 32), Q4_0),
    TensorSpec("c", (5,), BF16),
    TensorSpec("d", (1,), F32),
]


def split_set(folder: Path) -> list[Path]:
    files = gguf_shards(SPECS, {**ARCHITECTURE, "k": GGUFValue("u8", 1)}, 40, "m")
    paths = []
    for name, layout in files:
        paths.append(folder / name)
        data = {spec.name: raw_of(spec) for spec in SPECS if spec.name in layout.slots}
        paths[-1].write_bytes(build(layout, data))
    return paths


def test_opening_any_part_opens_the_whole_set(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    assert [path.name for path in paths] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for path in paths:
        checkpoint = open_gguf(path)
        assert checkpoint.files == tuple(paths)
        assert dict(checkpoint.metadata) == {"general.architecture": "llama", "k": 1}
        assert {n: t.read(0, prod(t.shape[:-1])).tobytes() for n, t in checkpoint.tensors.items()} == {
            spec.name: raw_of(spec) for spec in SPECS
        }


def test_split_keys_have_the_types_that_the_reference_writes(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for spec in SPECS[:2]:
        writer.add_tensor(spec.name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    theirs = tmp_path / "m-00002-of-00002.gguf"
    assert open_gguf(theirs).tensors.keys() == {"a", "b"}
    ours = gguf_read.read_file(split_set(tmp_path)[1])[0]
    assert {k: v.type for k, v in gguf_read.read_file(theirs)[0].items() if k.startswith("split.")} == {
        key: value.type for key, value in ours.items()
    }


def test_one_part_is_a_plain_file() -> None:
    [(name, layout)] = gguf_shards(SPECS, ARCHITECTURE, 1000, "m")
    assert (name, layout) == ("m.gguf", gguf_layout(SPECS, ARCHITECTURE))


def test_lists_every_missing_part(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    paths[0].unlink()
    paths[2].unlink()
    message = assert_refused(paths[1])
    assert paths[0].name in message
    assert paths[2].name in message


def test_refuses_parts_under_wrong_names(tmp_path: Path) -> None:
    paths = split_set(tmp_path)
    content = [path.read_bytes() for path in paths]
    paths[1].write_bytes(content[2])
    paths[2].write_bytes(content[1])
    for path in paths:
        with pytest.raises(FormatError, match=r"is part|says it is part"):
            open_gguf(path)
    other = tmp_path / "renamed.gguf"
    other.write_bytes(content[0])
    assert "-00001-of-00003.gguf" in assert_refused(other)


def test_refuses_a_name_that_promises_parts_which_the_keys_do_not(tmp_path: Path) -> None:
    path = written(tmp_path / "m-00001-of-00002.gguf", SPECS)
    assert "split.count" in assert_refused(path)


def split_keys(number: int, total: int) -> dict[str, GGUFValue]:
    return {
        "split.no": GGUFValue("u16", number),
        "split.count": GGUFValue("u16", 2),
        "split.tensors.count": GGUFValue("i32", total),
    }


@pytest.mark.parametrize(
    ("second", "total", "says"),
    [
        (SPECS[:1], 2, "is in m-00001-of-00002.gguf too"),
        (SPECS[1:2], 3, "split.tensors.count"),
        ([], 2, "hold 1 tensors"),
    ],
)
def test_refuses_parts_that_do_not_make_a_set(tmp_path: Path, second: list[TensorSpec], total: int, says: str) -> None:
    first = written(tmp_path / "m-00001-of-00002.gguf", SPECS[:1], split_keys(0, total))
    written(tmp_path / "m-00002-of-00002.gguf", second, split_keys(1, total))
    with pytest.raises(FormatError, match=says) as caught:
        open_gguf(first)
    assert "\n" not in str(caught.value)


def test_refuses_a_split_count_that_is_no_number(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", [], {"split.count": GGUFValue("string", "2")})
    assert "split.count" in assert_refused(path)


# writing


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (TensorSpec("a", (1,), DTYPES["BOOL"]), "cannot hold BOOL"),
        (TensorSpec("a", (1,), DTYPES["F8_E4M3"]), "cannot hold F8_E4M3"),
        (TensorSpec("a" * 64, (1,), F32), "tensor names"),
        (TensorSpec("", (1,), F32), "tensor names"),
        (TensorSpec("a\n", (1,), F32), "tensor names"),
        (TensorSpec("a", (), F32), "dimensions"),
        (TensorSpec("a", (1, 1, 1, 1, 1), F32), "dimensions"),
        (TensorSpec("a", (0, 4), F32), "dimensions"),
        (TensorSpec("a", (100,), Q4_K), "divide by 256"),
    ],
)
def test_refuses_to_lay_out_a_tensor_that_gguf_cannot_hold(spec: TensorSpec, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        gguf_layout([spec], {})


def test_refuses_two_tensors_of_one_name() -> None:
    with pytest.raises(ModelError, match="two tensors"):
        gguf_layout([SPECS[0], SPECS[0]], {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("k", GGUFValue("u32", -1)),
        ("k", GGUFValue("u32", 1 << 32)),
        ("k", GGUFValue("u32", 1.0)),
        ("k", GGUFValue("u32", True)),
        ("k", GGUFValue("bool", 1)),
        ("k", GGUFValue("f32", 1e39)),
        ("k", GGUFValue("f32", "1")),
        ("k", GGUFValue("string", 1)),
        ("k", GGUFValue("string", "\ud800")),
        ("k", GGUFValue("string", None)),
        ("k", GGUFValue("[u32]", [])),
        ("k", GGUFValue("[u32]", 1)),
        ("k", GGUFValue("[u32]", [1, "2"])),
        ("k", GGUFValue("[[u32]]", [[1]])),
        ("k", GGUFValue("array", [1])),
        ("k", GGUFValue("int", 1)),
        ("", GGUFValue("u8", 1)),
        ("a\nb", GGUFValue("u8", 1)),
        ("general.alignment", GGUFValue("u32", 3)),
        ("general.alignment", GGUFValue("u64", 32)),
    ],
)
def test_refuses_a_value_that_does_not_fit_its_type(key: str, value: GGUFValue) -> None:
    with pytest.raises(ModelError) as caught:
        gguf_layout([], {key: value})
    assert "\n" not in str(caught.value)


def test_layouts_are_deterministic_and_padded() -> None:
    layout = gguf_layout(SPECS, FULL)
    assert layout == gguf_layout(list(SPECS), dict(FULL))
    assert all(offset % 32 == 0 for offset in layout.slots.values())
    assert layout.nbytes == layout.slots["d"] + 32
