"""What comes out computes what went in: logits of real clients against an independent Meta forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from meta_checkpoints import meta_forward, read_meta, write_meta
from smelt.api import convert
from smelt.convert.options import OpenOptions

OPTIONS = OpenOptions(context_length=128)
TOKENS = torch.tensor([1, *range(5, 101)])

SHAPES = [
    pytest.param({"n_shards": shards, "n_kv_heads": kv, "dtype": dtype, **more}, id=f"{shards}shard-{name}-{dtype}")
    for shards in (1, 2, 4)
    for kv, name in ((None, "mha"), (4, "gqa"))
    for dtype, more in (
        (torch.float16, {}),
        (torch.bfloat16, {"shared_storage": True}),
    )
]


def transformers_logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(TOKENS[None], use_cache=False).logits[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_safetensors_gives_the_logits_of_metas_forward(tmp_path: Path, shape: dict[str, object]) -> None:
    written = write_meta(tmp_path / "meta", dim=64, n_heads=8, **shape)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    expected = meta_forward({key: t.float() for key, t in written.state.items()}, written.params, TOKENS)
    assert (transformers_logits(tmp_path / "hf").double() - expected).abs().max() < 1e-4


def test_the_bundled_model_gives_the_logits_of_metas_forward(tiny_llama: Path, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "hf", options=OpenOptions(context_length=512))
    state, params = read_meta(tiny_llama)
    expected = meta_forward({key: t.float() for key, t in state.items()}, params, TOKENS)
    assert (transformers_logits(tmp_path / "hf").double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kv_heads", [None, 4])
@pytest.mark.parametrize("source", ["meta", "hf"])
def test_llama_cpp_gives_the_logits_of_transformers(tmp_path: Path, kv_heads: int | None, source: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    write_meta(tmp_path / "meta", dim=64, n_heads=8, n_kv_heads=kv_heads, n_shards=2)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / source, tmp_path / "model.gguf", dtype="f32", options=OPTIONS)
    expected = transformers_logits(tmp_path / "hf").numpy()
    # the KV cache is f16 unless asked otherwise: type 0 is F32
    client = llama_cpp.Llama(
        str(tmp_path / "model.gguf"), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2
    )
    client.eval(TOKENS.tolist())
    got = np.array(client.scores[: len(TOKENS)])
    assert np.abs(got - expected).max() < 1e-3
    assert (got.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_llama_cpp_reads_the_same_token_ids(tiny_llama: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    import sentencepiece

    convert(tiny_llama, tmp_path / "model.gguf", options=OpenOptions(context_length=512))
    client = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tiny_llama / "tokenizer.model"))
    lines = (tiny_llama / "heldout.txt").read_text(encoding="utf-8").splitlines()[:400]
    for line in lines:
        assert client.tokenize(line.encode(), add_bos=True, special=False) == [1, *processor.encode(line)]
