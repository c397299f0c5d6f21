"""BLOOM: its fused projection in both orders, the spellings of its published configs, its byte-level vocabulary."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from smelt.api import convert, open_checkpoint, quantize
from smelt.convert.layouts import fused
from smelt.convert.model import LazyTensor
from smelt.dtypes import DTYPES
from smelt.formats.gguf import open_gguf
from smelt.formats.safetensors import open_safetensors

from .byte_level import LINES, trained_json

transformers = pytest.importorskip("transformers", reason="it writes the models")

QKV = "transformer.h.0.self_attention.query_key_value."


def write(folder: Path, hidden_size: int = 64, n_layer: int = 2) -> Path:
    """A folder of random fp16 weights with BLOOM's kind of vocabulary, and a config as the published ones are."""
    tokenizer = trained_json("bloom")
    vocab_size = len(json.loads(tokenizer)["model"]["vocab"]) + 34
    settings = transformers.BloomConfig(vocab_size=vocab_size, hidden_size=hidden_size, n_layer=n_layer, n_head=4)
    torch.manual_seed(0)
    model = transformers.BloomForCausalLM(settings).half()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape).half() * 0.05)
    model.save_pretrained(folder)
    config = {
        "model_type": "bloom",
        "n_embed": hidden_size,
        "n_inner": None,
        "n_layer": n_layer,
        "num_attention_heads": 4,
        "seq_length": 128,
        "layer_norm_epsilon": 1e-05,
        "vocab_size": vocab_size,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_bytes(tokenizer)
    return folder


def payloads(folder: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    tensors = open_safetensors(folder).tensors
    return {
        name: (tensor.shape, tensor.read(0, int(np.prod(tensor.shape[:-1]))).tobytes())
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("shape", [(96, 5), (96,)])
def test_the_fused_projection_is_reordered_in_any_slabs(shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape), dtype="<u2").reshape(shape)
    raw = np.ascontiguousarray(values if len(shape) > 1 else values[None]).view(np.uint8)
    canonical = LazyTensor("qkv", shape, DTYPES["F16"], lambda start, stop: raw[start:stop])
    layout, config = fused("heads"), {"heads": 4}
    stored = layout.to_stored(canonical, config)
    wanted = values.reshape(4, 3, 8, -1).swapaxes(0, 1).reshape(shape)
    rows = stored.matrix_shape[0]
    cuts = [0, 3, 8, 9, 40, rows] if rows > 1 else [0, 1]
    found = np.concatenate([stored.read(a, b) for a, b in pairwise(cuts)])
    assert np.array_equal(found.view("<u2").reshape(shape), wanted)
    assert np.array_equal(layout.to_canonical(stored, config).read(0, rows), raw)
    assert stored.read(2, 2).shape[0] == 0


def test_gguf_holds_all_queries_then_keys_then_values(tmp_path: Path) -> None:
    write(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m.gguf")
    state = load_file(tmp_path / "hf" / "model.safetensors")
    for kind in ("weight", "bias"):
        tensor = open_checkpoint(tmp_path / "m.gguf").tensors[QKV + kind]
        heads = state[QKV + kind].reshape(4, 3, 16, -1)
        stored = open_gguf(tmp_path / "m.gguf").tensors[f"blk.0.attn_qkv.{kind}"]
        raw = stored.read(0, int(np.prod(stored.shape[:-1])))
        numbers = raw.view("<f2" if kind == "weight" else "<f4").astype(np.float32).reshape(3, 64, -1)
        for part in range(3):
            assert np.array_equal(numbers[part], heads[:, part].reshape(64, -1).float().numpy())
        assert np.array_equal(tensor.load_float32(), state[QKV + kind].float().numpy())


def test_published_spellings_come_back_whole_with_their_vocabulary(tmp_path: Path) -> None:
    source = write(tmp_path / "hf")
    convert(source, tmp_path / "m.gguf")
    metadata = open_gguf(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == "bloom" and metadata["bloom.context_length"] == 128
    assert metadata["bloom.feed_forward_length"] == 256
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(source)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    settings = transformers.AutoConfig.from_pretrained(tmp_path / "back")
    assert (settings.hidden_size, settings.n_layer, settings.n_head) == (64, 2, 4)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_names_without_the_prefix_are_the_same_model(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "hf")
    wanted = payloads(source)
    state = load_file(source / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    (source / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(bare, source / "pytorch_model.bin")
    else:
        save_file(bare, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "out")
    assert payloads(tmp_path / "out") == wanted
    assert open_checkpoint(source).stored_names["transformer.ln_f.weight"] == "ln_f.weight"


def test_the_fused_projection_takes_llama_cpps_types(tmp_path: Path) -> None:
    source = write(tmp_path / "hf", hidden_size=256)
    quantize(source, tmp_path / "m.gguf", "q4_k_m")
    tensors = open_gguf(tmp_path / "m.gguf").tensors
    assert tensors["blk.0.attn_qkv.weight"].dtype.name == "Q5_K"
    assert tensors["blk.0.ffn_up.weight"].dtype.name == "Q4_K"
    assert tensors["token_embd.weight"].dtype.name == "Q6_K"  # the head as well
    assert tensors["token_embd_norm.weight"].dtype.name == "F32"


def test_a_head_that_another_writer_stored_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "hf")
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["transformer.word_embeddings.weight"] * 2
    save_file(state, source / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    convert(source, tmp_path / "m.gguf")
    assert "output.weight" in open_gguf(tmp_path / "m.gguf").tensors
    convert(tmp_path / "m.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(source)


def test_llama_cpp_reads_its_words_and_computes_its_logits(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    source = write(tmp_path / "hf")
    convert(source, tmp_path / "m.gguf", dtype="f32")
    client = llama_cpp.Llama(
        str(tmp_path / "m.gguf"), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0, n_threads=2
    )
    words = transformers.PreTrainedTokenizerFast(tokenizer_file=str(source / "tokenizer.json"))
    for line in [line for line in LINES if line][:200]:
        wanted = words(line, add_special_tokens=False).input_ids
        assert client.tokenize(line.encode(), add_bos=False, special=False) == wanted
    tokens = words(" ".join(LINES[:8])).input_ids[:80]
    client.eval(tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    assert np.abs(np.array(client.scores[: len(tokens)]) - logits).max() < 1e-3
