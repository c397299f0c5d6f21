"""Which tensor gets which type: llama.cpp's choices, the user's overrides, honest fallbacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from meta_checkpoints import write_meta

from smelt.api import convert, open_checkpoint, quantize
from smelt.convert.model import LazyTensor, Model
from smelt.convert.options import OpenOptions
from smelt.dtypes import F16
from smelt.errors import ModelError, UsageError
from smelt.formats.gguf import open_gguf
from smelt.quantize.choose import ChooseOptions, choose, find_recipe
from smelt.quantize.recipes import RECIPES, Place, by_rule, more_bits

OPTIONS = OpenOptions(context_length=128)


def shaped(n_layers: int, heads: int, kv_heads: int, hidden: int, ffn: int, vocab: int) -> Model:
    """A LLaMA of that shape whose tensors hold nothing."""
    head_dim = hidden // heads
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    for layer in range(n_layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv_heads * head_dim, hidden),
            "self_attn.v_proj": (kv_heads * head_dim, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    tensors = {
        name: LazyTensor(name, shape, F16, lambda start, stop: np.empty((0, 0), np.uint8)) for name, shape in shapes.items()
    }
    config = {"num_hidden_layers": n_layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return Model("llama", config, None, tensors, "meta", (Path("none"),))


def sizes(model: Model, recipe: str) -> float:
    chosen = choose(model, RECIPES[recipe], ChooseOptions()).schemes
    total = 0
    for name, tensor in model.tensors.items():
        ((shape, dtype),) = chosen[name].stored(tensor.shape).values()
        total += dtype.tensor_nbytes(shape)
    return total / 2**30


LLAMA_65B = shaped(80, 64, 64, 8192, 22016, 32000)


# computed from llama.cpp's rules for LLaMA 65B, in GiB; its own table for Llama 3.1 8B agrees with them to 0.001 bits
@pytest.mark.parametrize(("recipe", "gib"), [("Q4_K_M", 36.65), ("Q8_0", 64.61), ("Q4_0", 34.27), ("Q6_K", 49.88)])
def test_llama_65b_has_the_size_that_llama_cpp_gives_it(recipe: str, gib: float) -> None:
    assert sizes(LLAMA_65B, recipe) == pytest.approx(gib, abs=0.006)


def test_a_70b_keeps_its_shared_values_at_five_bits() -> None:
    model = shaped(80, 64, 8, 8192, 28672, 32000)
    place = Place(20, 80, 8, 0, imatrix=False)
    assert not more_bits(place) or by_rule(RECIPES["Q4_K_M"], "attn_v", place) == "Q6_K"
    with pytest.raises(UsageError, match="Q5_K"):
        choose(model, RECIPES["Q4_K_M"], ChooseOptions())


@pytest.mark.parametrize("n", [1, 4, 32, 80])
def test_more_bits_go_to_the_first_eighth_the_last_and_every_third(n: int) -> None:
    chosen = [i for i in range(n) if more_bits(Place(i, n, 1, 0, imatrix=False))]
    assert len(chosen) == {1: 1, 4: 2, 32: 16, 80: 40}[n]
    assert n - 1 in chosen


def test_names_are_llama_cpps_in_any_case() -> None:
    assert find_recipe("q4_k").name == find_recipe("Q4_K_M").name == "Q4_K_M"
    with pytest.raises(UsageError, match="it makes .*q4_k_m"):
        find_recipe("q4_k_xl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choose") / "meta"
    write_meta(path, dim=256, n_kv_heads=2)
    return path


def dtypes(path: Path) -> dict[str, str]:
    return {name: tensor.dtype.name for name, tensor in open_gguf(path).tensors.items()}


@pytest.mark.parametrize("scheme", ["q4_k_m", "q8_0", "q4_0", "q6_k"])
def test_every_tensor_has_the_type_that_llama_cpps_own_library_chooses(folder: Path, tmp_path: Path, scheme: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    convert(folder, tmp_path / "f16.gguf", options=OPTIONS)
    quantize(folder, tmp_path / "ours.gguf", scheme, options=OPTIONS)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = RECIPES[scheme.upper()].file_type
    source, target = str(tmp_path / "f16.gguf").encode(), str(tmp_path / "theirs.gguf").encode()
    assert llama_cpp.llama_model_quantize(source, target, params) == 0
    assert dtypes(tmp_path / "ours.gguf") == dtypes(tmp_path / "theirs.gguf")


def test_the_first_matching_override_wins(folder: Path, tmp_path: Path) -> None:
    choices = ChooseOptions(tensor_types=(("blk.0.attn_v", "q8_0"), ("attn_v", "q4_0")))
    quantize(folder, tmp_path / "m.gguf", "q6_k", options=OPTIONS, choices=choices)
    found = dtypes(tmp_path / "m.gguf")
    assert (found["blk.0.attn_v.weight"], found["blk.1.attn_v.weight"]) == ("Q8_0", "Q4_0")


def test_an_override_that_matches_nothing_is_an_error(folder: Path, tmp_path: Path) -> None:
    choices = ChooseOptions(tensor_types=(("attn_vv", "q8_0"),))
    with pytest.raises(UsageError, match="attn_vv: matches no tensor"):
        quantize(folder, tmp_path / "m.gguf", "q8_0", options=OPTIONS, choices=choices)


def test_pure_gives_every_matrix_the_base_type(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "m.gguf", "q4_k", options=OPTIONS, choices=ChooseOptions(pure=True))
    assert set(dtypes(tmp_path / "m.gguf").values()) == {"Q4_K", "F32"}


def test_rows_that_do_not_divide_are_an_error_unless_allowed_and_then_listed(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dim=64)
    with pytest.raises(ModelError, match=r"16 tensors.*--allow-fallback"):
        quantize(tmp_path / "meta", tmp_path / "m.gguf", "q6_k", options=OPTIONS, choices=ChooseOptions())
    result = quantize(
        tmp_path / "meta", tmp_path / "m.gguf", "q6_k", options=OPTIONS, choices=ChooseOptions(allow_fallback=True)
    )
    assert sum(note.startswith("fallback: ") for note in result.notes) == 16


def test_a_quantized_source_is_refused_unless_allowed(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "q8.gguf", "q8_0", options=OPTIONS)
    with pytest.raises(UsageError, match="--allow-requantize"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "q4_0")
    result = quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "q4_0", allow_requantize=True)
    assert "requantized from Q8_0" in result.notes
    assert open_checkpoint(tmp_path / "q4.gguf").tokenizer is not None
