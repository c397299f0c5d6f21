"""Which tensor gets which type: llama.cpp's choices, the user's overrides, honest fallbacks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from llama_shapes import SHAPES, shaped
from meta_checkpoints import write_meta
from smelt.api import open_checkpoint, quantize
from smelt.convert.model import Model
from smelt.convert.options import OpenOptions
from smelt.errors import ModelError, UsageError
from smelt.formats.gguf import open_gguf
from smelt.quantize.choose import ChooseOptions, choose_types, find_recipe
from smelt.quantize.recipes import RECIPES, Place, more_bits

OPTIONS = OpenOptions(context_length=128)


def gib(model: Model, recipe: str, *, imatrix: bool = False) -> float:
    chosen = choose_types(model, RECIPES[recipe], ChooseOptions(imatrix=imatrix))
    return sum(dtype.tensor_nbytes(model.tensors[name].shape) for name, dtype in chosen.dtypes.items()) / 2**30


LLAMA_65B, LLAMA2_70B = SHAPES["LLAMA_65B"], SHAPES["LLAMA2_70B"]

# of llama.cpp's rules for LLaMA 65B; its own table for Llama 3.1 8B agrees with the same rules to 0.001 bits
GIB_65B = {
    "Q8_0": 64.61,
    "Q6_K": 49.88,
    "Q5_K_M": 43.06,
    "Q5_K_S": 41.84,
    "Q4_K_M": 36.65,
    "Q4_K_S": 34.51,
    "Q4_0": 34.27,
    "Q3_K_L": 32.27,
    "Q3_K_M": 29.46,
    "IQ3_M": 27.78,
    "Q3_K_S": 26.23,
    "IQ3_S": 26.23,
    "Q2_K": 22.46,
    "IQ2_M": 20.87,
    "IQ2_XS": 17.95,
    "IQ2_XXS": 16.27,
}


@pytest.mark.parametrize(("recipe", "wanted"), GIB_65B.items())
def test_llama_65b_has_the_size_that_llama_cpp_gives_it(recipe: str, wanted: float) -> None:
    assert gib(LLAMA_65B, recipe) == pytest.approx(wanted, abs=0.006)


def test_importance_saves_iq4_xs_its_wider_first_layers() -> None:
    assert gib(LLAMA_65B, "IQ4_XS", imatrix=True) == pytest.approx(32.38, abs=0.006)
    assert gib(LLAMA_65B, "IQ4_XS") == pytest.approx(32.64, abs=0.006)


def types(model: Model, recipe: str, **options: object) -> dict[str, str]:
    chosen = choose_types(model, RECIPES[recipe], ChooseOptions(**options))  # type: ignore[arg-type]
    return {name: dtype.name for name, dtype in chosen.dtypes.items()}


def test_a_70b_keeps_its_shared_values_at_five_bits() -> None:
    values = [dtype for name, dtype in types(LLAMA2_70B, "Q4_K_M").items() if "v_proj" in name]
    assert Counter(values) == {"Q5_K": 40, "Q6_K": 40}
    assert "Q5_K" not in types(LLAMA_65B, "Q4_K_M").values()


@pytest.mark.parametrize(
    ("model", "recipe", "wanted"),
    [
        ("LLAMA_7B", "Q4_K_M", {"Q4_K": 193, "Q6_K": 33, "F32": 65}),
        ("LLAMA_7B", "Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1, "F32": 65}),
        ("LLAMA_13B", "Q4_K_M", {"Q4_K": 241, "Q6_K": 41, "F32": 81}),
        ("LLAMA_13B", "Q2_K", {"Q2_K": 161, "Q3_K": 120, "Q6_K": 1, "F32": 81}),
        ("LLAMA_65B", "Q4_K_M", {"Q4_K": 481, "Q6_K": 81, "F32": 161}),
        ("LLAMA_65B", "Q5_K_M", {"Q5_K": 481, "Q6_K": 81, "F32": 161}),
        ("LLAMA_65B", "IQ2_XXS", {"IQ2_XXS": 470, "Q2_K": 91, "Q5_K": 1, "F32": 161}),
        ("LLAMA2_70B", "Q4_K_M", {"Q4_K": 441, "Q5_K": 40, "Q6_K": 81, "F32": 161}),
        ("LLAMA2_70B", "Q2_K", {"Q2_K": 321, "Q3_K": 160, "Q5_K": 80, "Q6_K": 1, "F32": 161}),
    ],
)
def test_the_published_shapes_have_these_types(model: str, recipe: str, wanted: dict[str, int]) -> None:
    assert Counter(types(SHAPES[model], recipe).values()) == wanted


# sizes of well-known files of these models on the Hugging Face hub, made by llama.cpp itself, in GB of 10^9 bytes
@pytest.mark.parametrize(
    ("model", "recipe", "gb"),
    [
        ("LLAMA_7B", "Q4_K_M", 4.08),
        ("LLAMA_7B", "Q5_K_M", 4.78),
        ("LLAMA_7B", "Q6_K", 5.53),
        ("LLAMA_7B", "Q8_0", 7.16),
        ("LLAMA_7B", "Q3_K_L", 3.60),
        ("LLAMA_13B", "Q4_K_M", 7.87),
        ("LLAMA_13B", "Q5_K_M", 9.23),
        ("LLAMA_13B", "Q8_0", 13.83),
        ("LLAMA2_70B", "Q4_K_M", 41.42),
        ("LLAMA2_70B", "Q5_K_M", 48.75),
    ],
)
def test_sizes_are_those_of_published_files(model: str, recipe: str, gb: float) -> None:
    assert gib(SHAPES[model], recipe) * 2**30 / 1e9 == pytest.approx(gb, abs=0.0075)


@pytest.mark.parametrize("n", [1, 4, 32, 80])
def test_more_bits_go_to_the_first_eighth_the_last_and_every_third(n: int) -> None:
    chosen = [i for i in range(n) if more_bits(Place(i, n, 1, 0, imatrix=False))]
    assert len(chosen) == {1: 1, 4: 2, 32: 16, 80: 40}[n]
    assert n - 1 in chosen


def test_names_are_llama_cpps_in_any_case() -> None:
    assert find_recipe("q4_k").name == find_recipe("Q4_K_M").name == "Q4_K_M"
    with pytest.raises(UsageError, match=r"it makes .*q4_k_m"):
        find_recipe("q4_k_xl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choose") / "meta"
    write_meta(path, dim=256, n_kv_heads=2)
    return path


def dtypes(path: Path) -> dict[str, str]:
    return {name: tensor.dtype.name for name, tensor in open_gguf(path).tensors.items()}


def test_the_first_matching_override_wins(folder: Path, tmp_path: Path) -> None:
    choices = ChooseOptions(tensor_types=(("blk.0.attn_v", "q8_0"), ("attn_v", "q4_0")))
    quantize(folder, tmp_path / "m.gguf", "q6_k", options=OPTIONS, choices=choices)
    found = dtypes(tmp_path / "m.gguf")
    assert (found["blk.0.attn_v.weight"], found["blk.1.attn_v.weight"]) == ("Q8_0", "Q4_0")


def test_an_override_that_matches_nothing_is_an_error(folder: Path, tmp_path: Path) -> None:
    choices = ChooseOptions(tensor_types=(("attn_vv", "q8_0"),))
    with pytest.raises(UsageError, match=r"attn_vv: matches no tensor"):
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
    with pytest.raises(UsageError, match=r"--allow-requantize"):
        quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "q4_0")
    result = quantize(tmp_path / "q8.gguf", tmp_path / "q4.gguf", "q4_0", allow_requantize=True)
    assert "requantized from Q8_0" in result.notes
    assert open_checkpoint(tmp_path / "q4.gguf").tokenizer is not None


def test_llama_cpps_options_for_the_ends_win_over_patterns_and_pure(folder: Path, tmp_path: Path) -> None:
    choices = ChooseOptions(
        pure=True, tensor_types=(("output|embd", "q4_0"),), output_type="q8_0", embedding_type="f16"
    )
    quantize(folder, tmp_path / "m.gguf", "q6_k", options=OPTIONS, choices=choices)
    found = dtypes(tmp_path / "m.gguf")
    assert (found["output.weight"], found["token_embd.weight"]) == ("Q8_0", "F16")
    assert found["blk.0.attn_output.weight"] == "Q4_0"
    assert found["blk.0.ffn_up.weight"] == "Q6_K"


def test_the_head_is_left_as_it_is_stored(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "m.gguf", "q4_0", options=OPTIONS, choices=ChooseOptions(leave_output=True))
    assert dtypes(tmp_path / "m.gguf")["output.weight"] == "F16"


def test_options_for_a_head_that_cannot_be_are_refused() -> None:
    tied = shaped(2, 4, 4, 256, 512, 512, tied=True)
    with pytest.raises(UsageError, match=r"no output\.weight.*--token-embedding-type"):
        choose_types(tied, RECIPES["Q8_0"], ChooseOptions(leave_output=True))
    with pytest.raises(UsageError, match="contradict"):
        choose_types(LLAMA_65B, RECIPES["Q8_0"], ChooseOptions(leave_output=True, output_type="f16"))
    with pytest.raises(UsageError, match=r"--output-tensor-type q9: the type is unknown"):
        choose_types(LLAMA_65B, RECIPES["Q8_0"], ChooseOptions(output_type="q9"))


def test_a_tied_embedding_takes_the_heads_type() -> None:
    tied = shaped(2, 4, 4, 256, 512, 512, tied=True)
    name = "model.embed_tokens.weight"
    assert choose_types(tied, RECIPES["Q4_0"], ChooseOptions()).dtypes[name].name == "Q6_K"
    assert choose_types(tied, RECIPES["Q4_0"], ChooseOptions(output_type="f16")).dtypes[name].name == "F16"


@pytest.mark.parametrize("recipe", ["IQ2_XXS", "IQ3_XXS", "IQ3_XS", "IQ1_M", "Q2_K_S"])
def test_types_that_are_useless_without_importance_need_it(recipe: str) -> None:
    assert choose_types(LLAMA_65B, RECIPES[recipe], ChooseOptions()).need_importance


@pytest.mark.parametrize("recipe", ["IQ3_S", "IQ4_XS", "Q2_K", "TQ1_0"])
def test_other_types_do_not_need_importance(recipe: str) -> None:
    assert not choose_types(LLAMA_65B, RECIPES[recipe], ChooseOptions()).need_importance
