"""The main job on the small trained model: shrunk, loaded by real clients, judged; and damage found by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smelt.api import convert, quantize, validate
from smelt.convert.options import OpenOptions
from smelt.formats.gguf import open_gguf
from smelt.validate.options import ValidateOptions

OPTIONS = OpenOptions(context_length=512)
CHUNKS = 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    convert(tiny_llama, folder / "hf", options=OPTIONS)
    convert(tiny_llama, folder / "f16.gguf", options=OPTIONS)
    quantize(tiny_llama, folder / "q4_k_m.gguf", "q4_k_m", options=OPTIONS)
    return folder


@pytest.fixture(scope="module")
def text(tiny_llama: Path) -> str:
    return (tiny_llama / "heldout.txt").read_text(encoding="utf-8")


def windows(made: Path, text: str, chunks: int) -> list[torch.Tensor]:
    """llama.cpp's windows of 512, cut here anew from the SentencePiece ids."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(made / "hf" / "tokenizer.model"))
    ids = [1, *processor.encode(text)]
    return [torch.tensor([1, *ids[start + 1 : start + 512]]) for start in range(0, chunks * 512, 512)]


def decoded_by_gguf(path: Path, network: Any) -> None:
    """Put the weights of a GGUF file, as the `gguf` package decodes them, into a transformers LLaMA."""
    import gguf

    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    layer_names = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        rows = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        parts = tensor.name.split(".")
        name = names[parts[0]] if parts[0] != "blk" else f"model.layers.{parts[1]}.{layer_names[parts[2]]}"
        if parts[-2] in ("attn_q", "attn_k"):
            heads = 8 if parts[-2] == "attn_q" else 4
            rows = rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        state[f"{name}.weight"] = rows
    network.load_state_dict(state)


def logits(network: Any, cut: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [network(tokens[None], use_cache=False).logits[0, 256:511].double() for tokens in cut]


def mean_kld(reference: list[torch.Tensor], candidate: list[torch.Tensor]) -> float:
    total = [
        (p.log_softmax(-1).exp() * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
        for p, q in zip(reference, candidate, strict=True)
    ]
    return float(torch.cat(total).mean())


def perplexity(cut: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    nll = [-row.log_softmax(-1).gather(-1, tokens[257:512, None])[:, 0] for tokens, row in zip(cut, found, strict=True)]
    return math.exp(float(torch.cat(nll).mean()))


def network_of(made: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made / "hf", dtype=torch.float32)


def test_the_shrunk_model_passes_and_every_number_is_the_in_memory_one(tiny_llama: Path, made: Path, text: str) -> None:
    measure = ValidateOptions(chunks=CHUNKS, generate=0)
    document = validate(tiny_llama, [made / "q4_k_m.gguf"], text, measure, OPTIONS).document()
    candidate = document["candidates"][0]
    cut = windows(made, text, CHUNKS)
    network = network_of(made)
    reference = logits(network, cut)
    decoded_by_gguf(made / "q4_k_m.gguf", network)
    shrunk = logits(network, cut)
    assert document["verdict"] == candidate["verdict"] == "pass"
    assert document["tokens"] == CHUNKS * 255
    assert document["reference"]["perplexity"] == pytest.approx(perplexity(cut, reference), rel=1e-4)
    assert candidate["perplexity"] == pytest.approx(perplexity(cut, shrunk), rel=1e-4)
    assert candidate["kld"]["mean"] == pytest.approx(mean_kld(reference, shrunk), abs=1e-5)
    agreement = np.mean(
        [(p.argmax(-1) == q.argmax(-1)).double().mean() for p, q in zip(reference, shrunk, strict=True)]
    )
    assert candidate["top1_agreement"] == pytest.approx(agreement, abs=1e-3)
    assert candidate["bits_per_weight"] == pytest.approx(4.92, abs=0.01)
    json.dumps(document, allow_nan=False)


def test_the_shrunk_model_loses_no_more_than_llama_cpps_own(made: Path, text: str, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = 15  # Q4_K_M
    theirs = tmp_path / "theirs.gguf"
    assert llama_cpp.llama_model_quantize(str(made / "f16.gguf").encode(), str(theirs).encode(), params) == 0
    cut = windows(made, text, CHUNKS)
    network = network_of(made)
    reference = logits(network, cut)
    klds = []
    for path in (made / "q4_k_m.gguf", theirs):
        decoded_by_gguf(path, network)
        klds.append(mean_kld(reference, logits(network, cut)))
    assert klds[0] <= 1.03 * klds[1]


def llama_cpp_logits(llama_cpp: Any, path: Path, cut: list[torch.Tensor]) -> list[torch.Tensor]:
    client = llama_cpp.Llama(str(path), n_ctx=512, n_batch=512, logits_all=True, verbose=False, type_k=0, type_v=0)
    found = []
    for tokens in cut:
        client.reset()
        client.eval(tokens.tolist())
        found.append(torch.from_numpy(np.array(client.scores[256:511])).double())
    return found


def test_llama_cpp_measures_the_same_perplexity_and_divergence(tiny_llama: Path, made: Path, text: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    chunks = 12
    measure = ValidateOptions(chunks=chunks, generate=0)
    document = validate(tiny_llama, [made / "q4_k_m.gguf"], text, measure, OPTIONS).document()
    cut = windows(made, text, chunks)
    reference = llama_cpp_logits(llama_cpp, made / "f16.gguf", cut)
    shrunk = llama_cpp_logits(llama_cpp, made / "q4_k_m.gguf", cut)
    assert document["reference"]["perplexity"] == pytest.approx(perplexity(cut, reference), rel=3e-3)
    # llama.cpp rounds activations to 8 bits as well: its divergence is a little larger
    assert document["candidates"][0]["kld"]["mean"] == pytest.approx(mean_kld(reference, shrunk), rel=0.15)


def damaged(made: Path, target: Path, damage: str) -> Path:
    shutil.copy(made / "q4_k_m.gguf", target)
    places = open_gguf(made / "q4_k_m.gguf").tensors
    with open(target, "r+b") as file:

        def content(name: str) -> bytes:
            file.seek(places[name].offset)
            return file.read(places[name].nbytes)

        def put(name: str, new: bytes) -> None:
            file.seek(places[name].offset)
            file.write(new)

        if damage == "zeroed":
            put("blk.2.ffn_down.weight", bytes(places["blk.2.ffn_down.weight"].nbytes))
        elif damage == "nan":
            put("blk.1.ffn_up.weight", b"\x00\x7e" + content("blk.1.ffn_up.weight")[2:])
        else:
            first, second = content("blk.0.attn_q.weight"), content("blk.3.attn_q.weight")
            put("blk.0.attn_q.weight", second)
            put("blk.3.attn_q.weight", first)
    return target


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        ("zeroed", ["model.layers.2.mlp.down_proj.weight"]),
        ("nan", ["model.layers.1.mlp.up_proj.weight"]),
        ("swapped", ["model.layers.0.self_attn.q_proj.weight", "model.layers.3.self_attn.q_proj.weight"]),
    ],
)
def test_damage_fails_and_is_named(
    tiny_llama: Path, made: Path, text: str, tmp_path: Path, damage: str, names: list[str]
) -> None:
    broken = damaged(made, tmp_path / "broken.gguf", damage)
    report = validate(tiny_llama, [broken], text, ValidateOptions(chunks=4, generate=0), OPTIONS)
    reasons = " ".join(gate["reason"] for gate in report.document()["candidates"][0]["gates"] if not gate["passed"])
    assert not report.passed
    assert all(name in reasons for name in names)


def test_a_model_against_itself_is_exactly_equal(tiny_llama: Path, made: Path, text: str) -> None:
    report = validate(
        tiny_llama, [tiny_llama, made / "hf", made / "f16.gguf"], text, ValidateOptions(chunks=4, generate=0), OPTIONS
    )
    assert report.passed
    for candidate in report.document()["candidates"]:
        assert candidate["kld"]["mean"] == candidate["kld"]["max"] == 0
        assert candidate["delta_ln_ppl"] == {"mean": 0, "low": 0, "high": 0}
        assert candidate["top1_agreement"] == 1


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    from smelt.demo import demo

    said: list[str] = []
    result = demo(tmp_path, 16, said.append)
    document = result.document()
    assert document["verdict"] == "pass"
    assert all(Path(name).is_file() for name in document["files"])
    assert [line.split()[0] for line in said if line[0] in "123"] == ["1.", "2.", "3."]
    demo(tmp_path, 4, said.append)  # once more over what it made
