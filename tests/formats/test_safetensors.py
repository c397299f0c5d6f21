from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from smelt.dtypes import BF16, DTYPES, F16, F32, PLAIN, Q4_0, DType
from smelt.errors import FormatError, InputError, ModelError, SmeltError, UsageError
from smelt.formats.checkpoint import FileLayout, TensorSpec
from smelt.formats.safetensors import index_json, open_safetensors, safetensors_layout, shard_plan


def build(layout: FileLayout, data: dict[str, bytes]) -> bytes:
    """The file that a layout describes."""
    content = bytearray(layout.nbytes)
    pieces = [*layout.pieces, *((layout.slots[name], raw) for name, raw in data.items())]
    for offset, raw in pieces:
        content[offset : offset + len(raw)] = raw
    assert len(content) == layout.nbytes
    return bytes(content)


def raw_of(spec: TensorSpec) -> bytes:
    """Bytes that differ from tensor to tensor; zeros and ones for BOOL."""
    values = np.arange(spec.nbytes) * 31 + len(spec.name)
    return (values % (2 if spec.dtype.name == "BOOL" else 251)).astype(np.uint8).tobytes()


def written(path: Path, specs: list[TensorSpec], metadata: dict[str, str] | None = None) -> Path:
    path.write_bytes(build(safetensors_layout(specs, metadata or {}), {spec.name: raw_of(spec) for spec in specs}))
    return path


def raw_file(header: bytes | dict[str, object], data: bytes = b"") -> bytes:
    if isinstance(header, dict):
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_golden_bytes_of_a_tiny_file() -> None:
    specs = [TensorSpec("b", (1,), DTYPES["U8"]), TensorSpec("a", (1, 1), F16)]
    layout = safetensors_layout(specs, {"format": "pt"})
    header = (
        b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[1,1],"data_offsets":[0,2]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
    )
    padded = header.ljust(-(-len(header) // 8) * 8)
    content = build(layout, {"a": b"\x00\x3c", "b": b"\x07"})
    assert content == bytes([len(padded), 0, 0, 0, 0, 0, 0, 0]) + padded + b"\x00\x3c\x07"
    assert (8 + len(padded)) % 8 == 0


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_the_reference_reads_what_we_write(tmp_path: Path, dtype: DType) -> None:
    specs = [TensorSpec("matrix", (3, 5), dtype), TensorSpec("scalar", (), dtype), TensorSpec("none", (0, 4), dtype)]
    content = written(tmp_path / "model.safetensors", specs).read_bytes()
    found = dict(deserialize(content))
    assert {name: (tuple(t["shape"]), t["dtype"], bytes(t["data"])) for name, t in found.items()} == {
        spec.name: (spec.shape, dtype.name, raw_of(spec)) for spec in specs
    }


TORCH_NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool"},
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_we_read_and_write_the_bytes_of_the_reference(tmp_path: Path, dtype: DType) -> None:
    torch = pytest.importorskip("torch", reason="only torch has every dtype")
    from safetensors.torch import save

    specs = [TensorSpec("a", (2, 3), dtype), TensorSpec("z", (7,), dtype), TensorSpec("c", (4,), F32)]
    tensors = {
        spec.name: torch.frombuffer(bytearray(raw_of(spec)), dtype=torch.uint8)
        .view(getattr(torch, TORCH_NAMES[spec.dtype.name]))
        .reshape(spec.shape)
        for spec in specs
    }
    content = save(tensors, {"format": "pt"})
    path = tmp_path / "reference.safetensors"
    path.write_bytes(content)
    checkpoint = open_safetensors(path)
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.files == (path,)
    for spec in specs:
        tensor = checkpoint.tensors[spec.name]
        assert (tensor.shape, tensor.dtype) == (spec.shape, spec.dtype)
        rows = int(np.prod(spec.shape[:-1]))
        assert tensor.read(0, rows).tobytes() == raw_of(spec)
    assert build(safetensors_layout(specs, {"format": "pt"}), {spec.name: raw_of(spec) for spec in specs}) == content


def test_any_range_of_rows_comes_back_as_numpy_slices_it(tmp_path: Path) -> None:
    values = np.arange(7 * 6, dtype=np.float32).reshape(7, 2, 3)
    layout = safetensors_layout([TensorSpec("other", (3,), BF16), TensorSpec("x", (7, 2, 3), F32)], {})
    path = tmp_path / "model.safetensors"
    path.write_bytes(build(layout, {"x": values.tobytes()}))
    tensor = open_safetensors(path).tensors["x"]
    rows = values.reshape(14, 3)
    for start in range(15):
        for stop in range(start, 15):
            assert np.array_equal(tensor.read(start, stop).view(np.float32).reshape(-1, 3), rows[start:stop])


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.isprintable)
plain_specs = st.builds(
    TensorSpec,
    names,
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(PLAIN),
)


@given(st.lists(plain_specs, max_size=6, unique_by=lambda spec: spec.name), st.dictionaries(names, names, max_size=3))
def test_what_is_written_is_what_both_readers_find(
    tmp_path_factory: pytest.TempPathFactory, specs: list[TensorSpec], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("roundtrip") / "model.safetensors"
    written(path, specs, metadata)
    found = open_safetensors(path)
    assert {n: (t.shape, t.dtype) for n, t in found.tensors.items()} == {s.name: (s.shape, s.dtype) for s in specs}
    assert found.metadata == metadata
    for spec in specs:
        tensor = found.tensors[spec.name]
        assert tensor.file.read(tensor.offset, tensor.nbytes) == raw_of(spec)
    reference = dict(deserialize(path.read_bytes()))
    assert {n: bytes(t["data"]) for n, t in reference.items()} == {s.name: raw_of(s) for s in specs}


GOOD = raw_file({"a": entry()}, bytes(4))
DEEP = b'{"a":' * 200_000

HOSTILE: dict[str, bytes] = {
    "length 0": struct.pack("<Q", 0),
    "length 0 with data": struct.pack("<Q", 0) + bytes(8),
    "length 7": struct.pack("<Q", 7) + b'{"a":1}',
    "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length 2^64 - 1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "length over the cap": struct.pack("<Q", 100_000_001) + b"{}",
    "length past the end": struct.pack("<Q", 100) + b"{}      ",
    "eight bytes": GOOD[:8],
    "seven bytes": GOOD[:7],
    "byte order mark": raw_file(b"\xef\xbb\xbf{}"),
    "leading space": raw_file(b" {}"),
    "utf-16": raw_file('{"a":1}'.encode("utf-16-le")),
    "not utf-8": raw_file(b'{"\xff":1}'),
    "array": raw_file(b"[]"),
    "text after the object": raw_file(b"{} {}"),
    "cut json": raw_file(b'{"a":'),
    "duplicate tensor": raw_file(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
    "duplicate key in a tensor": raw_file(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "duplicate metadata key": raw_file(b'{"__metadata__":{"a":"1","a":"2"}}'),
    "float offset": raw_file({"a": entry(offsets=(0, 4.0))}, bytes(4)),
    "true as a size": raw_file({"a": entry(shape=(True,))}, bytes(4)),
    "true as an offset": raw_file({"a": entry("U8", (1,), (0, True))}, bytes(1)),
    "1e400": raw_file(b'{"a":{"dtype":"F32","shape":[1e400],"data_offsets":[0,4]}}', bytes(4)),
    "NaN": raw_file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', bytes(4)),
    "a number of 5000 digits": raw_file(b'{"a":{"dtype":"F32","shape":[%b],"data_offsets":[0,4]}}' % (b"9" * 5000)),
    "negative size": raw_file({"a": entry(shape=(-1, -1))}, bytes(4)),
    "negative offset": raw_file({"a": entry(offsets=(-4, 0))}, bytes(4)),
    "offset over u64": raw_file({"a": entry(offsets=(1 << 64, (1 << 64) + 4))}, bytes(4)),
    "end before begin": raw_file({"a": entry(offsets=(4, 0))}, bytes(4)),
    "product that wraps 64 bits": raw_file({"a": entry("U8", (1 << 32, 1 << 32), (0, 0))}),
    "product that wraps to the size": raw_file({"a": entry("U8", ((1 << 63) + 2, 2), (0, 4))}, bytes(4)),
    "33 dimensions": raw_file({"a": entry(shape=(1,) * 33)}, bytes(4)),
    "metadata of numbers": raw_file({"__metadata__": {"a": 1}}),
    "metadata that is a list": raw_file({"__metadata__": []}),
    "metadata with half a surrogate": raw_file(b'{"__metadata__":{"a":"\\ud800"}}'),
    "hole at the beginning": raw_file({"a": entry(offsets=(4, 8))}, bytes(8)),
    "hole between": raw_file({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
    "overlap": raw_file({"a": entry(shape=(2,), offsets=(0, 8)), "b": entry(offsets=(4, 8))}, bytes(8)),
    "the same bytes twice": raw_file({"a": entry(), "b": entry()}, bytes(4)),
    "size mismatch": raw_file({"a": entry(shape=(2,))}, bytes(4)),
    "odd count of F4": raw_file({"a": entry("F4", (3,), (0, 2))}, bytes(2)),
    "unknown dtype": raw_file({"a": entry("F33")}, bytes(4)),
    "block dtype": raw_file({"a": entry("Q8_0", (32,), (0, 34))}, bytes(34)),
    "dtype that is a list": raw_file({"a": entry(["F32"])}, bytes(4)),
    "entry that is a number": raw_file({"a": 1}),
    "entry without shape": raw_file({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4)),
    "three offsets": raw_file({"a": entry(offsets=(0, 4, 4))}, bytes(4)),
    "deep nesting": raw_file(DEEP),
    "half a surrogate as a name": raw_file(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "empty name": raw_file({"": entry()}, bytes(4)),
    "line feed in a name": raw_file({"a\nb": entry()}, bytes(4)),
    "escape sequence in a name": raw_file({"\x1b[31mred": entry()}, bytes(4)),
    "name of 5000 letters": raw_file({"a" * 5000: entry()}, bytes(4)),
    "trailing bytes": GOOD + b"x",
    "data cut": GOOD[:-1],
    "no data": GOOD[:-4],
    "empty file": b"",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "web page": b"<!DOCTYPE html><html><body>401</body></html>",
    "web page with a line before it": b"\n<html></html>",
    "a pickle": b"\x80\x02}q\x00.",
    "a zip": b"PK\x03\x04" + bytes(30),
    "a gguf": b"GGUF" + bytes(30),
    "text": b"hello, this is no model",
}


def assert_refused(path: Path, error: type[SmeltError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_safetensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path.name) in message
    return message


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_a_malformed_file_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert len(assert_refused(path)) < 1000


def test_tensors_may_lie_in_any_order_of_names(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file({"a": entry(offsets=(4, 8)), "b": entry(offsets=(0, 4))}, b"bbbbaaaa"))
    tensors = open_safetensors(path).tensors
    assert [(name, tensors[name].read(0, 1).tobytes()) for name in tensors] == [("b", b"bbbb"), ("a", b"aaaa")]


def test_every_cut_of_the_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", [TensorSpec("a", (2, 3), F32), TensorSpec("b", (3,), F16)])
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert_refused(path)


def test_every_flipped_header_byte_is_refused_or_read_as_the_reference_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", [TensorSpec("a", (2, 3), F32), TensorSpec("b", (3,), F16)])
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    accepted = 0
    for place in range(start):
        for mask in (0x01, 0x02, 0x04, 0x10, 0x20, 0x80, 0xFF):
            flipped = bytearray(content)
            flipped[place] ^= mask
            path.write_bytes(flipped)
            try:
                found = open_safetensors(path).tensors
            except SmeltError as error:
                assert "\n" not in str(error)
                continue
            accepted += 1
            reference = dict(deserialize(bytes(flipped)))
            assert {n: (t.shape, t.dtype.name) for n, t in found.items()} == {
                n: (tuple(t["shape"]), t["dtype"]) for n, t in reference.items()
            }
    assert accepted > 0  # names and metadata may change without harm


@given(st.binary(max_size=200))
def test_arbitrary_headers_are_refused_or_accepted_by_the_reference_too(
    tmp_path_factory: pytest.TempPathFactory, header: bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(raw_file(b"{" + header))
    try:
        open_safetensors(path)
    except SmeltError:
        return
    deserialize(path.read_bytes())


def test_refuses_what_is_no_regular_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    (tmp_path / "folder.safetensors").mkdir()
    assert "not a regular file" in assert_refused(pipe, InputError)
    assert "not a regular file" in assert_refused(Path("/dev/zero"), InputError)
    assert "holds neither" in assert_refused(tmp_path / "folder.safetensors", InputError)
    assert "cannot be opened" in assert_refused(tmp_path / "absent.safetensors", InputError)


def test_a_sparse_file_of_a_terabyte_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(GOOD)
        file.truncate(1 << 40)
    assert "trail" in assert_refused(path)


# folders and indexes


SPECS = [TensorSpec("a", (2,), F32), TensorSpec("b", (2, 2), F16), TensorSpec("c", (5,), BF16)]


def sharded(folder: Path, edit: dict[str, object] | None = None, **weight_map: object) -> Path:
    """Three tensors in two shards; `weight_map` replaces entries (None removes one), `edit` top-level keys."""
    shards = shard_plan(SPECS, 16)
    for name, specs in shards:
        written(folder / name, specs, {"format": "pt"})
    index = json.loads(index_json(shards))
    index["weight_map"].update(weight_map)
    index["weight_map"] = {name: shard for name, shard in index["weight_map"].items() if shard is not None}
    index.update(edit or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_a_folder_with_an_index_opens_as_one_checkpoint(tmp_path: Path) -> None:
    checkpoint = open_safetensors(sharded(tmp_path))
    assert {n: (t.shape, t.dtype, t.file.path.name) for n, t in checkpoint.tensors.items()} == {
        "a": ((2,), F32, FIRST),
        "b": ((2, 2), F16, FIRST),
        "c": ((5,), BF16, SECOND),
    }
    assert checkpoint.tensors["c"].read(0, 1).tobytes() == raw_of(SPECS[2])
    assert checkpoint.metadata == {"format": "pt"}
    assert [path.name for path in checkpoint.files] == [FIRST, SECOND, "model.safetensors.index.json"]
    assert open_safetensors(tmp_path / "model.safetensors.index.json").tensors.keys() == checkpoint.tensors.keys()


def test_shards_may_be_links_as_in_the_hub_cache(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    sharded(blobs)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for entry_ in blobs.iterdir():
        (snapshot / entry_.name).symlink_to(entry_)
    assert open_safetensors(snapshot).tensors.keys() == {"a", "b", "c"}


@pytest.mark.parametrize(
    "shard",
    [
        "../model-00001-of-00002.safetensors",
        "/etc/model.safetensors",
        "a/b.safetensors",
        "a\\b.safetensors",
        "C:model.safetensors",
        "model\0.safetensors",
        "model.safetensors\n",
        ".hidden.safetensors",
        "-rf.safetensors",
        "https://example.org/model.safetensors",
        "model.bin",
        "..",
        "",
        7,
        ["model.safetensors"],
        "model.safetensors.index.json",
    ],
)
def test_refuses_an_index_that_names_something_other_than_a_file_beside_it(tmp_path: Path, shard: object) -> None:
    assert "plain name" in assert_refused_folder(sharded(tmp_path, a=shard))


def assert_refused_folder(folder: Path, error: type[SmeltError] = FormatError) -> str:
    with pytest.raises(error) as caught:
        open_safetensors(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lists_every_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / SECOND).unlink()
    message = assert_refused_folder(tmp_path)
    assert FIRST in message
    assert SECOND in message


def test_lists_every_tensor_that_the_shards_lack_or_the_index_omits(tmp_path: Path) -> None:
    sharded(tmp_path, a=None, c=None, x=FIRST, y=SECOND, z=SECOND)
    message = assert_refused_folder(tmp_path)
    assert f"missing: x in {FIRST}, y in {SECOND}, z in {SECOND}" in message
    assert f"unexpected: a in {FIRST} (index: absent), c in {SECOND} (index: absent)" in message


def test_refuses_a_tensor_that_lies_in_another_shard_than_the_index_says(tmp_path: Path) -> None:
    assert f"a in {FIRST} (index: {SECOND})" in assert_refused_folder(sharded(tmp_path, a=SECOND))


def test_refuses_a_tensor_in_two_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    written(tmp_path / SECOND, [SPECS[0], SPECS[2]])
    assert f"a in {SECOND} (index: {FIRST})" in assert_refused_folder(tmp_path)


@pytest.mark.parametrize("name", ["model-00003-of-00003.safetensors", "model.safetensors"])
def test_refuses_shards_that_the_index_does_not_name(tmp_path: Path, name: str) -> None:
    sharded(tmp_path)
    written(tmp_path / name, SPECS)
    assert name in assert_refused_folder(tmp_path)


def test_other_safetensors_beside_an_index_are_left_alone(tmp_path: Path) -> None:
    sharded(tmp_path)
    written(tmp_path / "consolidated.safetensors", SPECS)
    assert len(open_safetensors(tmp_path).tensors) == 3


BAD_INDEXES: dict[str, dict[str, object]] = {
    "wrong total_size": {"metadata": {"total_size": 27}},
    "total_size that is text": {"metadata": {"total_size": "26"}},
    "total_size that is true": {"metadata": {"total_size": True}},
    "infinite total_size": {"metadata": {"total_size": 1e308 * 10}},
    "no weight_map": {"weight_map": None},
    "empty weight_map": {"weight_map": {}},
    "weight_map that is a list": {"weight_map": [FIRST]},
    "unprintable tensor name": {"weight_map": {"a\n": FIRST}},
}


@pytest.mark.parametrize("edit", BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
def test_refuses_a_malformed_index(tmp_path: Path, edit: dict[str, object]) -> None:
    assert_refused_folder(sharded(tmp_path, edit))


def test_total_size_may_be_absent_or_a_float(tmp_path: Path) -> None:
    assert len(open_safetensors(sharded(tmp_path, {"metadata": {}})).tensors) == 3
    assert len(open_safetensors(sharded(tmp_path, {"metadata": {"total_size": 26.0}})).tensors) == 3


@pytest.mark.parametrize("content", [b"", b"[]", b'{"weight_map":{"a":"x","a":"y"}}', b"<html>", b"\xff\xfe"])
def test_refuses_an_index_that_is_no_index(tmp_path: Path, content: bytes) -> None:
    sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    assert_refused_folder(tmp_path)


def test_a_folder_without_an_index_is_its_only_file(tmp_path: Path) -> None:
    written(tmp_path / "weights.safetensors", SPECS)
    assert open_safetensors(tmp_path).files == (tmp_path / "weights.safetensors",)
    written(tmp_path / "other.safetensors", SPECS)
    message = assert_refused_folder(tmp_path)
    assert "other.safetensors, weights.safetensors" in message
    written(tmp_path / "model.safetensors", SPECS)
    assert open_safetensors(tmp_path).files == (tmp_path / "model.safetensors",)


def test_refuses_a_shard_alone_in_a_folder(tmp_path: Path) -> None:
    written(tmp_path / FIRST, SPECS)
    assert "without an index" in assert_refused_folder(tmp_path)
    assert len(open_safetensors(tmp_path / FIRST).tensors) == 3  # asked for by name


def test_refuses_two_indexes_in_one_folder(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "model.fp16.safetensors.index.json").write_text("{}")
    assert "more than one model" in assert_refused_folder(tmp_path)


# writing


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(1, 60))
def test_shards_are_cut_where_huggingface_hub_cuts(sizes: list[int], limit: int) -> None:
    hub = pytest.importorskip("huggingface_hub.serialization._base", reason="the reference sharding judges")
    specs = [TensorSpec(f"t{i:02d}", (size,), DTYPES["U8"]) for i, size in enumerate(sizes)]
    wanted = hub.split_state_dict_into_shards_factory(
        {spec.name: spec.nbytes for spec in specs},
        get_storage_size=lambda nbytes: nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )
    found = shard_plan(specs, limit)
    assert {name: [spec.name for spec in part] for name, part in found} == wanted.filename_to_tensors
    index = json.loads(index_json(found))
    assert index == {"metadata": wanted.metadata, "weight_map": wanted.tensor_to_filename}


def test_a_plan_without_tensors_is_one_empty_file() -> None:
    assert shard_plan([], 10) == [("model.safetensors", [])]


def test_refuses_shards_of_no_size() -> None:
    with pytest.raises(UsageError):
        shard_plan(SPECS, 0)


@pytest.mark.parametrize(
    ("specs", "metadata", "says"),
    [
        ([TensorSpec("a", (32,), Q4_0)], {}, "cannot hold Q4_0"),
        ([TensorSpec("a", (1,), F32), TensorSpec("a", (2,), F32)], {}, "two tensors"),
        ([TensorSpec("__metadata__", (1,), F32)], {}, "rename"),
        ([TensorSpec("", (1,), F32)], {}, "rename"),
        ([TensorSpec("a\n", (1,), F32)], {}, "rename"),
        ([], {"a": "\ud800"}, "surrogate"),
    ],
)
def test_refuses_to_lay_out_what_the_format_cannot_hold(
    specs: list[TensorSpec], metadata: dict[str, str], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        safetensors_layout(specs, metadata)


def test_transformers_reads_a_sharded_folder_of_ours(tmp_path: Path) -> None:
    sharded(tmp_path)
    for name in (FIRST, SECOND):
        with safe_open(tmp_path / name, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            assert set(file.keys()) <= {"a", "b", "c"}
