"""llama.cpp's own library says which type every tensor gets, for every recipe and shape, with and without importance.

It is asked by a dry run on a GGUF file whose header tells the shape and whose tensors are one hole (sparse: 100 GB that
take a few kB of disk), and its answer is read from its log.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_shapes import SHAPES, shaped
from smelt.convert.architecture import family_by, match_names
from smelt.convert.model import Model
from smelt.dtypes import F32
from smelt.formats.checkpoint import TensorSpec
from smelt.formats.gguf import GGUFValue, gguf_layout
from smelt.quantize.choose import ChooseOptions, choose_types
from smelt.quantize.recipes import RECIPES, needs_importance

llama_cpp: Any = pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]"
)
if not hasattr(llama_cpp.llama_model_quantize_default_params(), "dry_run"):
    pytest.skip("this llama.cpp has no dry run", allow_module_level=True)

MODELS = {
    **SHAPES,
    "grouped, tied": shaped(12, 8, 2, 512, 1536, 1024, tied=True),
    "rows that divide by 32 alone": shaped(9, 4, 4, 288, 416, 512),
    "one layer": shaped(1, 4, 1, 256, 512, 512),
}
LINE = re.compile(r"\[ *\d+/ *\d+\] +(\S+) .*?, size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?\n")


def names(model: Model) -> dict[str, str]:
    family = family_by("name", model.architecture, "test")
    return {name: match.name("gguf") for name, match in match_names(family, "canonical", model.tensors, "test").items()}


def write_hole(path: Path, model: Model) -> None:
    """A file with the header of `model` and no data."""
    specs = [
        TensorSpec(names(model)[name], tensor.shape, F32 if len(tensor.shape) == 1 else tensor.dtype)
        for name, tensor in model.tensors.items()
    ]
    hidden = model.tensors["model.norm.weight"].shape[0]
    numbers = {
        "context_length": 2048,
        "embedding_length": hidden,
        "block_count": model.config["num_hidden_layers"],
        "feed_forward_length": model.tensors["model.layers.0.mlp.up_proj.weight"].shape[0],
        "attention.head_count": model.config["num_attention_heads"],
        "attention.head_count_kv": model.config["num_key_value_heads"],
        "vocab_size": model.tensors["model.embed_tokens.weight"].shape[0],
    }
    metadata = {"general.architecture": GGUFValue("string", "llama")}
    metadata |= {f"llama.{key}": GGUFValue("u32", value) for key, value in numbers.items()}
    metadata["llama.attention.layer_norm_rms_epsilon"] = GGUFValue("f32", 1e-5)
    layout = gguf_layout(specs, metadata)
    with path.open("wb") as file:
        for offset, piece in layout.pieces:
            file.seek(offset)
            file.write(piece)
        file.truncate(layout.nbytes)


@pytest.fixture(scope="module")
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _user_data: ctypes.c_void_p) -> None:
        lines.append(text.decode(errors="replace"))

    from llama_cpp._logger import llama_log_callback

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    yield lines
    llama_cpp.llama_log_set(llama_log_callback, ctypes.c_void_p(0))


@pytest.fixture(scope="module", params=MODELS)
def hole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    path = tmp_path_factory.mktemp("hole") / "model.gguf"
    write_hole(path, MODELS[request.param])
    return MODELS[request.param], path


def dry_run(path: Path, recipe: str, log: list[str], *, imatrix: bool) -> dict[str, str] | None:
    """{GGUF name: type}, of matrices; None where llama.cpp cannot."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.dry_run = RECIPES[recipe].file_type, True
    value = (ctypes.c_float * 1)(1.0)
    entries = (llama_cpp.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].data, entries[0].size = b"any", value, 1
    if imatrix:
        params.imatrix = entries
    log.clear()
    if llama_cpp.llama_model_quantize(bytes(path), bytes(path.with_name("out.gguf")), params):
        return None
    return {name: (kind or "F16").upper() for name, kind in LINE.findall("".join(log)) if "_norm" not in name}


@pytest.mark.parametrize("imatrix", [False, True], ids=["alone", "imatrix"])
def test_every_recipe_gives_every_tensor_llama_cpps_type(
    hole: tuple[Model, Path], log: list[str], imatrix: bool
) -> None:
    model, path = hole
    compared = 0
    for recipe in RECIPES.values():
        theirs = dry_run(path, recipe.name, log, imatrix=imatrix)
        if theirs is None:
            assert recipe.base in ("MXFP4", "NVFP4"), "".join(log)[-500:]  # blocks that have no fallback
            continue
        types = choose_types(model, recipe, ChooseOptions(allow_fallback=True, imatrix=imatrix))
        ours = {gguf: types.dtypes[name].name for name, gguf in names(model).items() if "_norm" not in gguf}
        assert ours == theirs, recipe.name
        compared += 1
        if not imatrix and model is MODELS["LLAMA_7B"]:
            assert bool(types.need_importance) == ("will require an imatrix" in "".join(log)), recipe.name
    assert compared >= len(RECIPES) - 2


def test_the_recipes_numbers_are_llama_cpps() -> None:
    for recipe in RECIPES.values():
        kind = "ALL" if recipe.name == "F32" else "MOSTLY"
        assert getattr(llama_cpp, f"LLAMA_FTYPE_{kind}_{recipe.name}") == recipe.file_type


def test_importance_is_asked_for_by_type_and_role() -> None:
    assert needs_importance(RECIPES["Q2_K_S"], "ffn_up", "Q2_K")
    assert not needs_importance(RECIPES["Q2_K"], "ffn_up", "Q2_K")
    assert not needs_importance(RECIPES["IQ2_XXS"], "token_embd", "IQ2_XXS")
