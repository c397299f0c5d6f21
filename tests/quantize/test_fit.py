"""Which scheme fits the card: sizes to the byte, the pick, and an answer before the weights are here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from meta_checkpoints import write_meta
from smelt.api import fit, open_checkpoint, quantize, quantized_plan
from smelt.convert.options import OpenOptions
from smelt.convert.outline import open_outline
from smelt.dtypes import DTYPES
from smelt.errors import InputError, ModelError, UsageError
from smelt.kernels.scheme import can_encode
from smelt.quantize import choose as choosing
from smelt.quantize.fit import Fit

GIB = 2**30
PARAMS_65B = '{"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1}'
PARAMS_70B = (
    '{"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8, "n_layers": 80, '
    '"norm_eps": 1e-05, "vocab_size": -1}'
)


@pytest.fixture
def llama_65b(tmp_path: Path) -> Path:
    folder = tmp_path / "65B"
    folder.mkdir()
    (folder / "params.json").write_text(PARAMS_65B)
    return folder


def test_llama_65b_is_sized_from_params_json_alone(llama_65b: Path) -> None:
    found = fit(llama_65b, 48 * GIB, 2048)
    sizes = {choice.scheme: choice.file_nbytes / GIB for choice in found.choices}
    assert found.parameters == 65_285_660_672
    for scheme, wanted in (("q4_k_m", 36.65), ("q8_0", 64.61), ("q2_k", 22.46), ("f16", 121.61)):
        assert sizes[scheme] == pytest.approx(wanted, abs=0.006)
    assert {choice.kv_nbytes for choice in found.choices} == {5 * GIB}


@pytest.mark.parametrize(
    ("kv_dtype", "wanted"), [("f32", 5.0), ("f16", 2.5), ("q8_0", 2.5 * 34 / 64), ("q4_0", 2.5 * 18 / 64)]
)
def test_the_kv_cache_of_1024_tokens(llama_65b: Path, kv_dtype: str, wanted: float) -> None:
    assert fit(llama_65b, GIB, 1024, kv_dtype=kv_dtype).choices[0].kv_nbytes == wanted * GIB


def test_grouped_query_attention_shrinks_the_cache_and_meta_s_formula_gives_the_ffn(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(PARAMS_70B)
    found = fit(tmp_path, 48 * GIB, 1024)
    assert found.choices[0].kv_nbytes == 0.3125 * GIB
    assert found.parameters == 68_976_648_192  # what Llama 2 70B has


def test_the_file_size_is_the_planned_one_to_the_byte(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=256, n_kv_heads=2)
    options = OpenOptions(context_length=2048)
    for found in (fit(tmp_path / "m", GIB, 128, options=options), fit(tmp_path / "m", GIB, 128, dry_run=False)):
        sizes = {choice.scheme: choice.file_nbytes for choice in found.choices if not choice.reason}
        assert {"q8_0", "q4_0", "q6_k", "f16"} <= sizes.keys()
        for scheme, size in sizes.items():
            plan = quantized_plan(tmp_path / "m", tmp_path / "m.gguf", scheme, options=options)
            assert (scheme, size) == (scheme, plan.nbytes)


def test_the_outline_is_the_model_without_its_weights(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=256, n_kv_heads=2, n_shards=2)
    options = OpenOptions(context_length=128)
    outline, model = open_outline(tmp_path / "m", options), open_checkpoint(tmp_path / "m", options)
    assert {name: tensor.shape for name, tensor in outline.tensors.items()} == {
        name: tensor.shape for name, tensor in model.tensors.items()
    }
    assert outline.config == model.config
    with pytest.raises(InputError, match=r"only params\.json was opened"):
        outline.tensors["lm_head.weight"].load_float32()


def test_an_unpublished_shape_without_a_tokenizer_must_be_told_its_vocabulary(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", tokenizer=None)
    with pytest.raises(ModelError, match="--vocab-size"):
        fit(tmp_path / "m", GIB, 128)
    assert fit(tmp_path / "m", GIB, 128, vocab_size=512).parameters == open_checkpoint(tmp_path / "m").parameters
    with pytest.raises(UsageError, match="--vocab-size is for a Meta folder"):
        fit(tmp_path / "m.gguf", GIB, 128, vocab_size=512)


def test_a_quantized_source_is_refused(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=256)
    quantize(tmp_path / "m", tmp_path / "m.gguf", "q8_0", options=OpenOptions(context_length=128))
    with pytest.raises(UsageError, match=r"quantized already \(Q8_0\): start from the original"):
        fit(tmp_path / "m.gguf", GIB, 128)


def picks(folder: Path, gib: float, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """As if every type could be made."""
    monkeypatch.setattr(choosing, "can_encode", lambda _dtype: True)
    return fit(folder, int(gib * GIB), 2048)


@pytest.mark.parametrize(
    ("gib", "scheme"), [(200, "f16"), (80, "q8_0"), (48, "q5_k_s"), (45, "q4_k_m"), (40, "q4_k_s"), (32, "iq3_s")]
)
def test_the_pick_is_the_largest_that_fits(
    llama_65b: Path, gib: float, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = picks(llama_65b, gib, monkeypatch)
    assert found.pick is not None
    assert found.pick.scheme == scheme
    assert found.pick.total_nbytes <= gib * GIB


def test_older_and_special_types_are_not_picked_where_another_fits(
    llama_65b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = picks(llama_65b, 44, monkeypatch)
    assert found.pick is not None
    sizes = {choice.scheme: choice.file_nbytes for choice in found.choices if choice.fits}
    assert sizes["q4_1"] > sizes["q4_k_m"]
    assert found.pick.scheme == "q4_k_m"


def test_what_cannot_be_made_says_why(llama_65b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {choice.scheme: choice.reason for choice in picks(llama_65b, 48, monkeypatch).choices}
    assert reasons["iq2_xs"] == reasons["q2_k_s"] == "needs --imatrix"
    assert reasons["tq2_0"] == "for models trained in ternary weights"
    assert reasons["bf16"] == reasons["f32"] == "the source is F16"
    assert reasons["q4_k_m"] == reasons["f16"] == ""
    monkeypatch.setattr(choosing, "can_encode", lambda dtype: dtype.name != "Q6_K")
    reasons = {choice.scheme: choice.reason for choice in fit(llama_65b, GIB, 1).choices}
    assert reasons["q4_k_m"] == "smelt cannot encode Q6_K yet"


def smelt(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "smelt", "fit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_the_command_answers_before_the_download_ends(llama_65b: Path) -> None:
    found = smelt(llama_65b, "--vram", "48GiB", "--context", 2048, "--dry-run", "--json")
    document = json.loads(found.stdout)
    assert found.returncode == 0
    assert {"vram", "context", "architecture", "parameters", "choices", "pick"} <= document.keys()
    assert document["vram"] == 48 * GIB
    chosen = next(choice for choice in document["choices"] if choice["scheme"] == document["pick"])
    assert chosen["available"] and chosen["fits"]
    assert chosen["total_bytes"] == chosen["file_bytes"] + chosen["kv_bytes"] + chosen["compute_bytes"] <= 48 * GIB


def test_the_command_makes_the_pick(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", dim=256, n_kv_heads=2)
    words = [tmp_path / "m", tmp_path / "m.{scheme}.gguf", "--context", 16, "--context-length", 128]
    found = smelt(*words, "--vram", "16MiB", "--json")
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    assert Path(document["target"]).name == f"m.{document['pick']}.gguf"
    size = Path(document["target"]).stat().st_size
    chosen = next(choice for choice in document["choices"] if choice["scheme"] == document["pick"])
    assert size == document["bytes"] == chosen["file_bytes"]


def test_nothing_fits_exits_with_1_and_says_so(llama_65b: Path) -> None:
    found = smelt(llama_65b, "--vram", "1GiB", "--context", 2048, "--dry-run", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout)["pick"] is None
    assert "nothing fits" in found.stderr and found.stderr.count("\n") == 1


def test_a_target_is_needed_to_make_one(llama_65b: Path) -> None:
    found = smelt(llama_65b, "--vram", "48GiB", "--context", 2048)
    assert found.returncode == 2
    assert "TARGET is missing" in found.stderr


# what llama.cpp (llama-cpp-python 0.3.36, CPU, no flash attention) reports for models of these shapes, in MiB
@pytest.mark.parametrize(
    ("params", "context", "mib"),
    [(PARAMS_65B, 512, 210), (PARAMS_65B, 2048, 372), (PARAMS_65B, 4096, 632), (PARAMS_70B, 2048, 344)],
)
def test_the_compute_buffer_is_what_llama_cpp_takes(tmp_path: Path, params: str, context: int, mib: int) -> None:
    (tmp_path / "params.json").write_text(params)
    assert fit(tmp_path, GIB, context).choices[0].compute_nbytes == mib * 2**20


@pytest.mark.skipif(
    not all(can_encode(DTYPES[name]) for name in ("Q2_K", "Q3_K", "Q5_K")), reason="the K kernels are not all here"
)
@pytest.mark.parametrize("card", [80, 48, 40, 32, 24])
def test_the_picks_in_the_documentation_are_the_picks(llama_65b: Path, card: int) -> None:
    text = (Path(__file__).parents[2] / "docs" / "fit.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith(f"| {card} GB |"))
    _, _, scheme, file, total, *_ = (cell.strip() for cell in row.split("|"))
    pick = fit(llama_65b, card * 10**9, 2048).pick
    if pick is None:
        assert (scheme, file, total) == ("none", "", "")
    else:
        sizes = [f"{nbytes / GIB:.2f} GiB" for nbytes in (pick.file_nbytes, pick.total_nbytes)]
        assert [scheme, file, total] == [pick.scheme, *sizes]


def test_where_nothing_fits_a_scheme_that_waits_for_importance_is_named(llama_65b: Path) -> None:
    found = fit(llama_65b, 20 * GIB, 128)
    assert found.pick is None
    waiting = found.why_none().split("with which ")[1].split(" fits")[0]
    sizes = {choice.scheme: choice for choice in found.choices}
    assert sizes[waiting].fits and sizes[waiting].reason == "needs --imatrix"
    assert "imatrix" not in fit(llama_65b, GIB, 128).why_none()
