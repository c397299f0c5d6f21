"""Importance: read from both of llama-imatrix's formats, matched to the model, used and recorded."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from llama_shapes import SHAPES, shaped
from meta_checkpoints import write_meta
from smelt.api import open_checkpoint, quantize
from smelt.convert.options import OpenOptions
from smelt.dtypes import F16, Q4_0
from smelt.errors import FormatError, InputError, ModelError, SmeltError, UsageError
from smelt.formats.gguf import open_gguf
from smelt.quantize import choose as choosing
from smelt.quantize.choose import ChooseOptions, choose
from smelt.quantize.imatrix import Importance, for_model, read_imatrix
from smelt.quantize.recipes import RECIPES

Vectors = Mapping[str, np.ndarray]
OPTIONS = OpenOptions(context_length=128)


def write_gguf(path: Path, sums: Vectors, counts: Mapping[str, list[float]], kind: str = "imatrix") -> Path:
    """As llama-imatrix writes it, by the gguf package."""
    writer = GGUFWriter(path, "")
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["calibration.txt", "more.txt"])
    writer.add_uint32("imatrix.chunk_count", 40)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32))
    for name, numbers in counts.items():
        writer.add_tensor(f"{name}.counts", np.array(numbers, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def legacy(entries: list[tuple[bytes, int, list[float]]], trailer: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, n_calls, values in entries:
        out += struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, len(values))
        out += np.array(values, "<f4").tobytes()
    return out + trailer


def test_gguf_values_are_sums_over_counts_and_ones_where_nothing_was_counted(tmp_path: Path) -> None:
    sums = {"blk.0.ffn_up.weight": np.array([[2.0, 4.0]]), "blk.0.ffn_up_exps.weight": np.array([[3.0, 6.0], [0, 0]])}
    counts = {"blk.0.ffn_up.weight": [2.0], "blk.0.ffn_up_exps.weight": [3.0, 0.0]}
    found = read_imatrix(write_gguf(tmp_path / "i.gguf", sums, counts))
    assert found.values["blk.0.ffn_up.weight"].tolist() == [1, 2]
    assert found.values["blk.0.ffn_up_exps.weight"].tolist() == [1, 2, 1, 1]
    assert (found.datasets, found.chunks) == (("calibration.txt", "more.txt"), 40)


@pytest.mark.parametrize(
    ("trailer", "datasets", "chunks"),
    [
        (b"", (), 0),
        (struct.pack("<i", 7), (), 7),
        (struct.pack("<ii", 7, 5) + b"a.txt", ("a.txt",), 7),
    ],
)
def test_legacy_values_are_numbers_over_calls(
    tmp_path: Path, trailer: bytes, datasets: tuple[str, ...], chunks: int
) -> None:
    path = tmp_path / "i.dat"
    path.write_bytes(legacy([(b"output.weight", 4, [4.0, 8.0]), (b"blk.0.ffn_up.weight", 0, [3.0])], trailer))
    found = read_imatrix(path)
    assert found.values["output.weight"].tolist() == [1, 2]
    assert found.values["blk.0.ffn_up.weight"].tolist() == [3]
    assert (found.datasets, found.chunks) == (datasets, chunks)


ONE = [(b"a", 1, [1.0, 2.0])]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "truncated"),
        (struct.pack("<i", 0), "number of entries is 0"),
        (struct.pack("<i", -5), "number of entries is -5"),
        (legacy(ONE)[:-1], "values of 'a' takes 8 bytes, 7 are left"),
        (struct.pack("<iii", 1, 1 << 30, 0), "length of the name of entry 0 is 1073741824"),
        (legacy([(b"\xff\xfe", 1, [1.0])]), "not UTF-8"),
        (legacy([(b"a", -1, [1.0])]), "calls of 'a' is -1"),
        (legacy([(b"a", 1, [])]), "number of values of 'a' is 0"),
        (legacy(ONE + ONE), "'a' is in it twice"),
        (legacy(ONE, struct.pack("<ii", 3, 0) + b"more"), "4 bytes follow the end"),
        (legacy(ONE, struct.pack("<ii", 3, 99) + b"x"), "the dataset takes 99 bytes"),
        (legacy([(b"a", 1, [1.0, float("nan")])]), "value 1 is nan"),
        (legacy([(b"a", 1, [-1.0])]), "value 0 is -1.0"),
        (legacy([(b"a", 1, [float("inf")])]), "value 0 is inf"),
    ],
)
def test_rejects_a_malformed_legacy_file(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "i.dat").write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_imatrix(tmp_path / "i.dat")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: write_gguf(p, {"a": np.ones((1, 4))}, {"a": [1]}, kind="model"), "general.type is 'model'"),
        (lambda p: write_gguf(p, {"a": np.ones((1, 4))}, {}), "'a': has only one of"),
        (lambda p: write_gguf(p, {}, {"a": [1]}), "'a': has only one of"),
        (lambda p: write_gguf(p, {"a": np.ones((1, 4))}, {"a": [1, 1, 1]}), "4 sums for 3 counts"),
        (lambda p: write_gguf(p, {"a": np.ones((1, 4))}, {"a": [-1]}), "count is negative"),
        (lambda p: write_gguf(p, {"a": np.full((1, 4), np.nan)}, {"a": [1]}), "value 0 is nan"),
        (lambda p: write_gguf(p, {"a": -np.ones((1, 4))}, {"a": [1]}), "value 0 is -1.0"),
    ],
)
def test_rejects_a_malformed_gguf_file(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_imatrix(make(tmp_path / "i.gguf"))
    assert says in str(caught.value)


def test_every_truncation_of_either_format_is_an_error(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "i.gguf", {"a": np.ones((1, 4))}, {"a": [1]}).read_bytes()
    for content in (whole, legacy(ONE, struct.pack("<ii", 7, 5) + b"a.txt")):
        ends = {len(legacy(ONE)), len(legacy(ONE)) + 4}  # where older versions of the format end
        for length in set(range(0, len(content), 3)) - ends:
            (tmp_path / "cut").write_bytes(content[:length])
            padding = content is whole and not any(content[length:])
            if not padding:
                with pytest.raises(SmeltError):
                    read_imatrix(tmp_path / "cut")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_imatrix(tmp_path / "nothing.gguf")


def importance(change: Mapping[str, int | None]) -> Importance:
    """One value a column for every matrix of the small model, but for `change`: lengths, None for a missing entry."""
    lengths: dict[str, int | None] = {
        f"blk.0.{name}.weight": 64 for name in ["attn_q", "attn_k", "attn_v", "attn_output"]
    }
    lengths |= {"blk.0.ffn_gate.weight": 64, "blk.0.ffn_up.weight": 64, "blk.0.ffn_down.weight": 128}
    lengths |= {"token_embd.weight": None, "output.weight": None, **change}
    values = {name: np.ones(n, np.float32) for name, n in lengths.items() if n is not None}
    return Importance(Path("i.gguf"), values, (), 0)


SMALL = shaped(1, 4, 4, 64, 128, 512)
ALL_Q4_0 = {name: Q4_0 if len(tensor.shape) > 1 else F16 for name, tensor in SMALL.tensors.items()}


def test_the_embedding_and_a_missing_head_go_without() -> None:
    found, notes = for_model(importance({"token_embd.weight": 3}), SMALL, ALL_Q4_0)
    assert len(found) == 7
    assert found["model.layers.0.mlp.down_proj.weight"].shape == (128,)
    assert sorted(notes) == ["without importance: output.weight", "without importance: token_embd.weight"]


def test_everything_that_does_not_fit_is_listed() -> None:
    wrong = importance({"blk.0.attn_q.weight": None, "blk.0.ffn_down.weight": 64, "output.weight": 65})
    with pytest.raises(ModelError, match="does not fit 3 tensors") as caught:
        for_model(wrong, SMALL, ALL_Q4_0)
    for part in (
        "blk.0.attn_q.weight (missing)",
        "ffn_down.weight (64 values, wanted 128)",
        "output.weight (65 values",
    ):
        assert part in str(caught.value)


def test_tensors_that_stay_floats_need_no_entry() -> None:
    dtypes = {**ALL_Q4_0, "model.layers.0.self_attn.q_proj.weight": F16}
    assert len(for_model(importance({"blk.0.attn_q.weight": None}), SMALL, dtypes)[0]) == 6


@pytest.mark.parametrize("recipe", ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ3_XXS", "Q2_K_S"])
def test_recipes_that_need_importance_refuse_without_it(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setattr(choosing, "can_encode", lambda _dtype: True)
    with pytest.raises(UsageError, match=r"blk\.0\..*--imatrix"):
        choose(SHAPES["LLAMA_7B"], RECIPES[recipe], ChooseOptions())
    assert choose(SHAPES["LLAMA_7B"], RECIPES[recipe], ChooseOptions(imatrix=True)).schemes


@pytest.mark.parametrize("scheme", ["iq1_s", "iq1_m"])
def test_the_smallest_types_are_made_with_importance_and_refused_without(tmp_path: Path, scheme: str) -> None:
    write_meta(tmp_path / "meta", dim=256)
    tensors = open_checkpoint(tmp_path / "meta", OPTIONS).tensors
    ffn = tensors["model.layers.0.mlp.down_proj.weight"].shape[1]
    roles = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    columns = {f"blk.{i}.{role}.weight": ffn if role == "ffn_down" else 256 for i in range(2) for role in roles}
    sums = {name: np.ones((1, n)) for name, n in columns.items()}
    path = write_gguf(tmp_path / "i.gguf", sums, {name: [1.0] for name in columns})
    with pytest.raises(UsageError, match=r"blk\.0\..*--imatrix"):
        quantize(tmp_path / "meta", tmp_path / "m.gguf", scheme, options=OPTIONS)
    quantize(tmp_path / "meta", tmp_path / "m.gguf", scheme, imatrix=path, options=OPTIONS)
    out = open_checkpoint(tmp_path / "m.gguf", OPTIONS).tensors["model.layers.1.mlp.up_proj.weight"]
    source = tensors["model.layers.1.mlp.up_proj.weight"].load_float32()
    assert out.dtype.name == scheme.upper()
    assert ((out.load_float32() - source) ** 2).sum() < 0.4 * (source**2).sum()


def test_importance_is_used_and_recorded(tmp_path: Path) -> None:
    made = write_meta(tmp_path / "meta", dim=256)
    model = open_checkpoint(tmp_path / "meta", OPTIONS)
    generator = np.random.default_rng(0)
    columns = {
        f"blk.{i}.{name}.weight": 256 for i in range(2) for name in ["attn_q", "attn_k", "attn_v", "attn_output"]
    }
    columns |= {f"blk.{i}.{name}.weight": 256 for i in range(2) for name in ("ffn_gate", "ffn_up")}
    ffn = model.tensors["model.layers.0.mlp.down_proj.weight"].shape[1]
    columns |= {f"blk.{i}.ffn_down.weight": ffn for i in range(2)}
    sums = {name: generator.exponential(size=(1, n)) ** 3 for name, n in columns.items()}
    path = write_gguf(tmp_path / "i.gguf", sums, {name: [1.0] for name in columns})
    with_it = quantize(tmp_path / "meta", tmp_path / "with.gguf", "q4_0", imatrix=path, options=OPTIONS)
    quantize(tmp_path / "meta", tmp_path / "without.gguf", "q4_0", options=OPTIONS)
    assert "without importance: token_embd.weight" in with_it.notes

    def weighted_error(name: str) -> float:
        out = open_checkpoint(tmp_path / name, OPTIONS)
        tensor = "model.layers.1.mlp.up_proj.weight"
        difference = out.tensors[tensor].load_float32() - model.tensors[tensor].load_float32()
        return float((difference**2 * sums["blk.1.ffn_up.weight"]).sum())

    assert weighted_error("with.gguf") < 0.9 * weighted_error("without.gguf")
    metadata = open_gguf(tmp_path / "with.gguf").metadata
    recorded = {key: metadata[key] for key in metadata if key.startswith("quantize.imatrix.")}
    assert recorded == {
        "quantize.imatrix.file": "i.gguf",
        "quantize.imatrix.dataset": "calibration.txt",
        "quantize.imatrix.entries_count": 14,
        "quantize.imatrix.chunks_count": 40,
    }
    manifest = json.loads((tmp_path / "with.gguf.smelt.json").read_text())
    assert manifest["provenance"] == recorded
    assert ("i.gguf", path.stat().st_size) in [(source["file"], source["bytes"]) for source in manifest["sources"]]
    assert "provenance" not in json.loads((tmp_path / "without.gguf.smelt.json").read_text())
    assert made.folder.exists()


def test_the_imatrix_file_is_never_overwritten(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta")
    path = tmp_path / "i.gguf"
    path.write_bytes(legacy([(b"token_embd.weight", 1, [1.0])]))
    with pytest.raises(ModelError, match="does not fit"):
        quantize(tmp_path / "meta", path, "q8_0", imatrix=path, options=OPTIONS, force=True)
    names = {f"blk.{i}.{n}.weight": (192 if n == "ffn_down" else 64) for i in range(2) for n in NAMES}
    path.write_bytes(legacy([(name.encode(), 1, [1.0] * n) for name, n in names.items()]))
    with pytest.raises(UsageError, match="is the input"):
        quantize(tmp_path / "meta", path, "q8_0", imatrix=path, options=OPTIONS, force=True)


NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
