from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from smelt.dtypes import DTYPES, FLOATS
from smelt.errors import UsageError
from smelt.formats.checkpoint import TensorSpec
from smelt.formats.pth import check_crc, open_pth
from smelt.formats.pth_write import TENSORS, TorchFile, crc32_combine, finish_pth, pth_layout

PLAIN = [dtype for dtype in DTYPES.values() if not dtype.is_block]


def contents_of(specs):
    generator = np.random.default_rng(1)
    return {spec.name: generator.integers(0, 2, spec.nbytes, np.uint8).tobytes() for spec in specs}


def written(path, specs, contents):
    layout = pth_layout(specs, "consolidated.00")
    crcs = {name: zlib.crc32(content) for name, content in contents.items()}
    with path.open("wb") as file:
        file.truncate(layout.nbytes)
        pieces = [*layout.pieces, *((layout.slots[name], content) for name, content in contents.items())]
        for offset, content in [*pieces, *finish_pth(specs, "consolidated.00", crcs)]:
            file.seek(offset)
            file.write(content)
        assert file.seek(0, io.SEEK_END) == layout.nbytes
    return layout


SPECS = [
    *(TensorSpec(f"layers.0.{dtype.name}", (3, 5), dtype) for dtype in PLAIN),
    TensorSpec("scalar", (), DTYPES["F32"]),
    TensorSpec("empty", (0, 4), DTYPES["BF16"]),
    TensorSpec("cube", (2, 3, 4), DTYPES["F16"]),
    TensorSpec("näme", (300,), DTYPES["BF16"]),
]


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_what_was_written(mmap, tmp_path):
    contents = contents_of(SPECS)
    written(tmp_path / "a.pth", SPECS, contents)
    state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
    assert list(state) == [spec.name for spec in SPECS]
    for spec in SPECS:
        tensor = state[spec.name]
        assert tuple(tensor.shape) == spec.shape and tensor.is_contiguous()
        raw = tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0, dtype=torch.uint8)
        assert raw.numpy().tobytes() == contents[spec.name]


def test_smelt_and_zipfile_read_what_was_written(tmp_path):
    contents = contents_of(SPECS)
    layout = written(tmp_path / "a.pth", SPECS, contents)
    assert zipfile.ZipFile(tmp_path / "a.pth").testzip() is None
    check_crc(tmp_path / "a.pth")
    tensors = open_pth(tmp_path / "a.pth").tensors
    for spec in SPECS:
        stored = tensors[spec.name]
        assert (stored.shape, stored.dtype, stored.strides) == (spec.shape, spec.dtype, None)
        assert stored.offset == layout.slots[spec.name]
        assert stored.offset % 64 == 0


def test_lays_storages_where_torch_does(tmp_path):
    """Same order, same filler, same descriptors: only the pickle's length differs, which is whole blocks of 64 away."""
    state = {f"t{i}": torch.zeros(3 + i, dtype=torch.float16) for i in range(5)}
    torch.save(state, tmp_path / "consolidated.00.pth")
    specs = [TensorSpec(name, tuple(tensor.shape), DTYPES["F16"]) for name, tensor in state.items()]
    ours = pth_layout(specs, "consolidated.00").slots
    theirs = open_pth(tmp_path / "consolidated.00.pth").tensors
    assert {ours[name] - theirs[name].offset for name in state} == {ours["t0"] - theirs["t0"].offset}


def test_pieces_and_slots_tile_the_file():
    layout = pth_layout(SPECS, "m")
    finishing = finish_pth(SPECS, "m", {spec.name: 0 for spec in SPECS})
    spans = [(at, len(content)) for at, content in [*layout.pieces, *finishing]]
    spans += [(layout.slots[spec.name], spec.nbytes) for spec in SPECS]
    cursor = 0
    for at, nbytes in sorted(spans):
        assert at == cursor
        cursor += nbytes
    assert cursor == layout.nbytes


def test_writes_beyond_4_gib_what_torch_and_smelt_read(tmp_path):
    specs = [TensorSpec("big", (1 << 31, 3), DTYPES["U8"]), TensorSpec("small", (2,), DTYPES["F32"])]
    specs.append(TensorSpec("none", (0,), DTYPES["F32"]))
    contents = {"small": np.float32([1.5, -2]).tobytes(), "none": b"", "big": b"\7"}
    written(tmp_path / "a.pth", specs, contents)  # sparse: of the 6 GiB only a page is on the disk
    tensors = open_pth(tmp_path / "a.pth").tensors
    assert tensors["small"].offset > 1 << 32
    assert tensors["small"].read(0, 1).tobytes() == contents["small"]
    state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=True)
    assert state["big"].shape == (1 << 31, 3) and state["big"][0, 0] == 7
    assert state["small"].tolist() == [1.5, -2.0]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_crc32_combine_joins_two_parts(first, second):
    assert crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_crc32_combine_joins_long_parts():
    part = bytes(range(256)) * 4096
    crc = 0
    for _ in range(3):
        crc = crc32_combine(crc, zlib.crc32(part), len(part))
    assert crc == zlib.crc32(part * 3)


def test_refuses_block_types_by_name():
    with pytest.raises(UsageError, match=r"head.*Q4_K"):
        pth_layout([TensorSpec("head", (2, 256), DTYPES["Q4_K"])], "m")


@pytest.mark.parametrize("stem", ["", "..", "a/b", "a\\b", "a\n"])
def test_refuses_stems_that_are_no_names(stem):
    with pytest.raises(UsageError):
        pth_layout([], stem)


def test_refuses_a_name_twice():
    with pytest.raises(UsageError, match="one name"):
        pth_layout([TensorSpec("a", (1,), FLOATS[0])] * 2, "m")


@pytest.mark.long
def test_reads_back_as_many_tensors_as_it_writes_and_refuses_more(tmp_path):
    specs = [TensorSpec(f"layers.{i}", (1, 1, 1, 1, 1), DTYPES["F8_E4M3"]) for i in range(TENSORS)]
    written(tmp_path / "a.pth", specs, contents_of(specs))
    assert len(open_pth(tmp_path / "a.pth").tensors) == TENSORS
    with pytest.raises(UsageError, match="more shards"):
        pth_layout([*specs, TensorSpec("one more", (1,), FLOATS[0])], "m")


BESIDE = {
    "cfg": {"model": {"heads": 12, "rate": 1e-4, "name": "näme", "flags": [True, False, None, -7, 1 << 40, [], {}]}},
    "args": None,
}


def test_values_beside_the_tensors_are_what_torch_and_smelt_load(tmp_path):
    specs = SPECS[:3]
    contents = contents_of(specs)
    file = TorchFile("reshard", tuple(specs), BESIDE)
    layout = file.layout()
    crcs = {name: zlib.crc32(content) for name, content in contents.items()}
    with (tmp_path / "reshard.pt").open("wb") as stream:
        stream.truncate(layout.nbytes)
        slots = ((layout.slots[name], content) for name, content in contents.items())
        for offset, content in [*layout.pieces, *slots, *file.finish(crcs)]:
            stream.seek(offset)
            stream.write(content)
    found = torch.load(tmp_path / "reshard.pt", weights_only=True)
    assert list(found) == ["model", "cfg", "args"] and list(found["model"]) == [spec.name for spec in specs]
    assert {key: found[key] for key in BESIDE} == BESIDE
    check_crc(tmp_path / "reshard.pt")
    opened = open_pth(tmp_path / "reshard.pt", inside="model")
    assert list(opened.tensors) == [spec.name for spec in specs]
    assert {key: opened.metadata[key] for key in BESIDE} == BESIDE
