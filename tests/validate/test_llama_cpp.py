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

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python judges the protocol")

N_CTX = 64
TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n  Indented lines count.\n" * 6


def llama_cpp_perplexity(path: Path) -> float:
    """e^(mean nll) over the second half of each window, BOS first in each; f32 cache, which is not llama.cpp's default."""
    model = llama_cpp.Llama(
        str(path), n_ctx=N_CTX, n_batch=N_CTX, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=1
    )
    ids = model.tokenize(TEXT.encode(), add_bos=True, special=False)
    losses = []
    for start in range(0, len(ids) - N_CTX + 1, N_CTX):
        window = [model.token_bos(), *ids[start + 1 : start + N_CTX]]
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
