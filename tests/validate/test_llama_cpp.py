"""The llamacpp protocol against llama.cpp itself: its tokenizer, its forward pass, its windows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from meta_checkpoints import write_meta
from smelt.api import convert
from smelt.convert.open import open_model
from smelt.convert.options import OpenOptions
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.run import measure_perplexity
from smelt.validate.texts import Text

from .trained import HELD_OUT, make

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python judges the protocol")

N_CTX = 64
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n  Indented lines count.\n" * 6


def llama_cpp_perplexity(path: Path, text: str = TEXT, chunks: int | None = None) -> float:
    """e^(mean nll) over the second half of each window; an f32 cache, which is not llama.cpp's default.

    BOS comes first in each window of a model that wants one, as in llama.cpp's own tool.
    """
    model = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_batch=N_CTX, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1
    )
    begins = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(model.model))
    ids = model.tokenize(text.encode(), add_bos=begins, special=False)
    losses = []
    for start in list(range(0, len(ids) - N_CTX + 1, N_CTX))[:chunks]:
        window = [model.token_bos() if begins else ids[start], *ids[start + 1 : start + N_CTX]]
        model.reset()
        model.eval(window)
        logits = np.array(model.scores[:N_CTX], np.float64)
        for place in range(N_CTX // 2, N_CTX - 1):
            row = logits[place]
            losses.append(row.max() + math.log(np.exp(row - row.max()).sum()) - row[window[place + 1]])
    return math.exp(float(np.mean(losses)))


def test_perplexity_is_llama_cpps(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dim=64, n_kv_heads=2)
    convert(tmp_path / "meta", tmp_path / "m.gguf", dtype="f32", options=OpenOptions(context_length=256))
    model = open_model(tmp_path / "m.gguf")
    found = measure_perplexity(Subject("m", model), Text("text", TEXT), ValidateOptions(n_ctx=N_CTX, resamples=100))
    assert found.evaluation.chunks >= 4
    assert found.perplexity == pytest.approx(llama_cpp_perplexity(tmp_path / "m.gguf"), rel=1e-4)


@pytest.mark.parametrize("name", ["llama", "bloom", pytest.param("bloom, trained", marks=pytest.mark.long)])
def test_perplexity_of_an_f16_file_is_llama_cpps(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    """To 0.1 %: llama.cpp rounds the activations to fp16 where the weights are."""
    file, options = tmp_path / "m.gguf", OpenOptions(context_length=512)
    if name == "llama":
        convert(tiny_llama, file, options=options)
    else:
        convert(make(tmp_path / "hf", "bloom", 200 if name.endswith("trained") else 0), file)
    measure = ValidateOptions(n_ctx=N_CTX, chunks=20, resamples=100, generate=0)
    found = measure_perplexity(Subject("m", open_model(file)), Text("text", HELD_OUT), measure)
    theirs = llama_cpp_perplexity(file, HELD_OUT, 20)
    print(f"{name}: perplexity {found.perplexity:.5f}, llama.cpp {theirs:.5f}, {found.perplexity / theirs - 1:+.1e}")
    assert found.evaluation.chunks == 20
    assert found.perplexity == pytest.approx(theirs, rel=1e-3)
