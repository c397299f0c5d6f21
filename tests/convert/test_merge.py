"""Adapters and deltas: the same weights as peft's merge_and_unload gives, and as the published recipes add up to."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smelt.api import merge
from smelt.convert.adapter import read_adapter
from smelt.convert.merge import with_adapter, with_delta
from smelt.convert.model import LazyTensor, Model
from smelt.convert.open import open_model
from smelt.convert.options import OpenOptions
from smelt.convert.published_sum import published_sum
from smelt.dtypes import F16, F32
from smelt.errors import FormatError, InputError, ModelError
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
}
WEIGHTS_ALONE = OpenOptions(skip_tokenizer=True)
ATTENTION = ["q_proj", "v_proj"]
LINEAR = [*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION},
    "rslora": {"r": 16, "lora_alpha": 24, "use_rslora": True, "target_modules": LINEAR},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": LINEAR,
        "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 12, "down_proj": 2},
        "alpha_pattern": {r".*layers\.1\.mlp\.(up|gate)_proj": 3},
    },
    "fan in, fan out": {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "target_modules": ATTENTION},
    "modules to save": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ATTENTION,
        "modules_to_save": ["embed_tokens", "lm_head"],
    },
    "embeddings": {"r": 6, "lora_alpha": 9, "target_modules": [*ATTENTION, "embed_tokens", "lm_head"]},
    "dora": {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": LINEAR},
    "biases": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "bias": "lora_only"},
    "lora bias": {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "lora_bias": True},
}
EXACT = set(VARIANTS) - {"dora"}  # the length of a row is a long sum: torch's order of adding is its own


def make_base(folder: Path, dtype: torch.dtype, *, tied: bool = False, biased: bool = False) -> Any:
    torch.manual_seed(0)
    kinds = (Qwen2Config, Qwen2ForCausalLM) if biased else (LlamaConfig, LlamaForCausalLM)
    network = kinds[1](kinds[0](**SHAPE, tie_word_embeddings=tied, initializer_range=0.1)).to(dtype)
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    network.save_pretrained(folder)
    return network


def make_adapter(network: Any, folder: Path, settings: dict[str, Any]) -> Any:
    """-> the adapted network, every adapter weight random, the adapter saved in `folder`."""
    peft = pytest.importorskip("peft", reason="peft is the judge of merged adapters; it is not installed")
    adapted = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "magnitude" in name:
                value.mul_(1 + 0.1 * torch.rand(value.shape, generator=generator))
            elif "lora_" in name or "modules_to_save" in name or (name.endswith("bias") and value.requires_grad):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    adapted.save_pretrained(folder)
    return adapted


def bits(model: Model, name: str) -> np.ndarray[Any, Any]:
    tensor = model.tensors[name]
    return tensor.load_float32()


def largest_gap(merged: Model, wanted: dict[str, torch.Tensor]) -> float:
    """The largest difference of any weight, in units of the weight's last place at float32; 0 where all bits are equal."""
    assert set(merged.tensors) == set(wanted)
    worst = 0.0
    for name, value in wanted.items():
        theirs = value.float().numpy()
        ours = bits(merged, name)
        assert ours.shape == theirs.shape
        worst = max(worst, float((np.abs(ours - theirs) / np.spacing(np.abs(theirs))).max()))
    return worst


def unloaded(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in adapted.merge_and_unload().named_parameters(remove_duplicate=True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_gives_what_peft_gives(tmp_path: Path, variant: str, dtype: torch.dtype) -> None:
    network = make_base(tmp_path / "base", dtype, biased="bias" in variant)
    adapted = make_adapter(network, tmp_path / "adapter", VARIANTS[variant])
    merged = with_adapter(open_model(tmp_path / "base", WEIGHTS_ALONE), read_adapter(tmp_path / "adapter"))
    gap = largest_gap(merged, unloaded(adapted))
    if variant in EXACT:
        assert gap == 0
    else:
        step = {torch.float32: 4, torch.float16: 2**13, torch.bfloat16: 2**16}[dtype]  # one place of the stored type
        assert gap <= step
    untouched = open_model(tmp_path / "base", WEIGHTS_ALONE)
    assert any(not np.array_equal(bits(merged, name), bits(untouched, name)) for name in untouched.tensors)


@pytest.mark.parametrize("variant", ["modules to save", "embeddings"])
def test_a_tied_embedding_is_treated_as_peft_treats_it(tmp_path: Path, variant: str) -> None:
    network = make_base(tmp_path / "base", torch.float16, tied=True)
    settings = dict(VARIANTS[variant])
    settings["target_modules"] = [name for name in settings["target_modules"] if name != "lm_head"]
    adapted = make_adapter(network, tmp_path / "adapter", settings)
    merged = with_adapter(open_model(tmp_path / "base", WEIGHTS_ALONE), read_adapter(tmp_path / "adapter"))
    wanted = unloaded(adapted)
    if merged.config["tie_word_embeddings"]:
        wanted.pop("lm_head.weight", None)
    assert largest_gap(merged, wanted) == 0


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, **settings}))
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


Q = "model.layers.0.self_attn.q_proj"
FACTORS = {f"{Q}.lora_A.weight": torch.ones(4, 64), f"{Q}.lora_B.weight": torch.ones(64, 4)}


@pytest.mark.parametrize(
    ("tensors", "settings", "said"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(4, 64)}, {}, "wanted factors"),
        ({**FACTORS, f"{Q}.lora_B.weight": torch.ones(64, 5)}, {}, "wanted factors"),
        ({**FACTORS, f"{Q}.lora_C": torch.ones(1)}, {}, "have no meaning"),
        ({**FACTORS, "model.layers.9.mlp.up_proj.weight": torch.ones(96, 64)}, {}, "does not have"),
        ({k.replace("q_proj", "z_proj"): v for k, v in FACTORS.items()}, {}, "does not have"),
        ({**FACTORS, f"{Q}.lora_B.weight": torch.ones(60, 4)}, {}, "the change is"),
        ({**FACTORS, f"{Q}.lora_B.bias": torch.ones(64)}, {}, "has a bias"),
        (FACTORS, {"peft_type": "IA3"}, "IA3"),
        (FACTORS, {"init_lora_weights": "pissa_niter_4"}, "changed base"),
        (FACTORS, {"layer_replication": [[0, 2]]}, "layer_replication"),
        (FACTORS, {"rank_pattern": {"q_proj": 3}}, "rank_pattern says 3"),
        (FACTORS, {"lora_alpha": None}, "lora_alpha"),
        (FACTORS, {"alpha_pattern": {"(": 1}}, "no regular expression"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, Any], said: str
) -> None:
    make_base(tmp_path / "base", torch.float16)
    write_adapter(tmp_path / "adapter", tensors, **settings)
    with pytest.raises((ModelError, FormatError), match=said) as caught:
        with_adapter(open_model(tmp_path / "base", WEIGHTS_ALONE), read_adapter(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_adapter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"adapter_config\.json: is missing"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    with pytest.raises(InputError, match="holds neither"):
        read_adapter(tmp_path)


def make_delta(tmp_path: Path, dtype: torch.dtype, extra_rows: int) -> dict[str, torch.Tensor]:
    """base and delta folders; -> what the published scripts make of them, by their own steps in torch."""
    base = make_base(tmp_path / "base", torch.float16)
    torch.manual_seed(5)
    shape = {**SHAPE, "vocab_size": SHAPE["vocab_size"] + extra_rows}
    delta = LlamaForCausalLM(LlamaConfig(**shape, initializer_range=0.05)).to(dtype)
    delta.save_pretrained(tmp_path / "delta")
    raw = base.to(dtype)
    if extra_rows:
        raw.resize_token_embeddings(shape["vocab_size"], mean_resizing=False)
        for matrix in (raw.get_input_embeddings().weight.data, raw.get_output_embeddings().weight.data):
            matrix[-extra_rows:] = matrix[:-extra_rows].mean(dim=0, keepdim=True)
    recovered = delta.state_dict()
    for name, value in raw.state_dict().items():
        recovered[name].add_(value)
    return recovered


def test_a_vicuna_delta_is_added_in_fp16(tmp_path: Path) -> None:
    wanted = make_delta(tmp_path, torch.float16, 0)
    merged = with_delta(open_model(tmp_path / "base", WEIGHTS_ALONE), open_model(tmp_path / "delta", WEIGHTS_ALONE))
    assert largest_gap(merged, wanted) == 0


def test_an_alpaca_delta_is_added_in_float32_with_its_added_row(tmp_path: Path) -> None:
    wanted = make_delta(tmp_path, torch.float32, 1)
    merged = with_delta(open_model(tmp_path / "base", WEIGHTS_ALONE), open_model(tmp_path / "delta", WEIGHTS_ALONE))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert np.array_equal(bits(merged, name)[:-1], wanted[name].numpy()[:-1])
        np.testing.assert_allclose(bits(merged, name)[-1], wanted[name].numpy()[-1], rtol=1e-5, atol=1e-7)
    rest = {
        name: value for name, value in wanted.items() if name not in ("model.embed_tokens.weight", "lm_head.weight")
    }
    for name, value in rest.items():
        assert np.array_equal(bits(merged, name), value.numpy()), name
    assert any("mean of the base's rows" in note for note in merged.notes)


def test_rows_are_the_same_however_they_are_cut(tmp_path: Path) -> None:
    make_delta(tmp_path, torch.float32, 3)
    merged = with_delta(open_model(tmp_path / "base", WEIGHTS_ALONE), open_model(tmp_path / "delta", WEIGHTS_ALONE))
    tensor = merged.tensors["model.embed_tokens.weight"]
    rows = tensor.shape[0]
    pieces = [tensor.read(start, min(rows, start + 7)) for start in range(0, rows, 7)]
    assert np.array_equal(np.concatenate(pieces), tensor.read(0, rows))


def test_a_delta_of_another_model_is_refused(tmp_path: Path) -> None:
    make_delta(tmp_path, torch.float16, 0)
    other = LlamaForCausalLM(LlamaConfig(**{**SHAPE, "intermediate_size": 128})).half()
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="does not fit the base"):
        with_delta(open_model(tmp_path / "base", WEIGHTS_ALONE), open_model(tmp_path / "other", WEIGHTS_ALONE))
    make_base(tmp_path / "bf16", torch.bfloat16)
    with pytest.raises(ModelError, match="says how to add"):
        with_delta(open_model(tmp_path / "base", WEIGHTS_ALONE), open_model(tmp_path / "bf16", WEIGHTS_ALONE))


def xor_payload(folder: Path, base: Path, wanted: Path, *, packed: bool = False) -> None:
    """What Open Assistant published: every file XORed with the base's of that name, others as they are."""
    folder.mkdir()
    for path in sorted(wanted.iterdir()):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        if (base / path.name).is_file():
            key = np.frombuffer((base / path.name).read_bytes(), np.uint8)[: len(content)]
            content = content ^ np.pad(key, (0, len(content) - len(key)))
        stored = content.tobytes()
        (folder / path.name).write_bytes(gzip.compress(stored) if packed and path.suffix != ".json" else stored)


def save_bin(network: Any, folder: Path) -> None:
    folder.mkdir()
    torch.save(network.state_dict(), folder / "pytorch_model.bin")
    network.config.save_pretrained(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_xored_files_come_back_byte_for_byte(tmp_path: Path, packed: bool) -> None:
    torch.manual_seed(1)
    save_bin(make_base(tmp_path / "a", torch.float16), tmp_path / "base")
    save_bin(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": 352})).half(), tmp_path / "wanted")
    (tmp_path / "wanted" / "added_tokens.json").write_text('{"<human>": 320}')
    xor_payload(tmp_path / "xor", tmp_path / "base", tmp_path / "wanted", packed=packed)
    if packed:
        assert (tmp_path / "xor" / "pytorch_model.bin").read_bytes()[:2] == b"\x1f\x8b"
    result = merge(tmp_path / "base", tmp_path / "out", delta=tmp_path / "xor")
    for path in (tmp_path / "wanted").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert "added_tokens.json" in " ".join(result.notes)
    assert open_model(tmp_path / "out", WEIGHTS_ALONE).config["vocab_size"] == 352


def test_xored_files_with_another_base_leave_nothing(tmp_path: Path) -> None:
    save_bin(make_base(tmp_path / "a", torch.float16), tmp_path / "base")
    save_bin(make_base(tmp_path / "b", torch.float32), tmp_path / "wanted")
    xor_payload(tmp_path / "xor", tmp_path / "base", tmp_path / "wanted")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"another file altogether" * 99999)
    with pytest.raises(InputError, match="the very files"):
        merge(tmp_path / "base", tmp_path / "out", delta=tmp_path / "xor")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["safetensors", "gguf", "meta"])
def test_an_adapter_is_merged_into_any_format(tmp_path: Path, to: str) -> None:
    make_base(tmp_path / "base", torch.float16)
    write_adapter(tmp_path / "adapter", {name: 0.1 * value for name, value in FACTORS.items()})
    target = tmp_path / ("out.gguf" if to == "gguf" else "out")
    merge(tmp_path / "base", target, lora=tmp_path / "adapter", to=to, options=WEIGHTS_ALONE)
    wanted = with_adapter(open_model(tmp_path / "base", WEIGHTS_ALONE), read_adapter(tmp_path / "adapter"))
    found = open_model(target, WEIGHTS_ALONE)
    for name, tensor in wanted.tensors.items():
        assert np.array_equal(tensor.load_float32(), found.tensors[name].load_float32()), name
    manifest = json.loads((tmp_path / "out.gguf.smelt.json" if to == "gguf" else target / "smelt.json").read_text())
    assert manifest["recipe"] == "merge --lora adapter"
    assert "adapter_model.safetensors" in [source["file"] for source in manifest["sources"]]


def sum_of(state: dict[str, torch.Tensor], layers: int, head_dim: int) -> float:
    """The recipe's own sum: a state dict of transformers 4.28 had each layer's inverse frequencies in it."""
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, head_dim, 2).float() / head_dim))
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies for i in range(layers)}
    return float(sum(tensor.sum() for tensor in {**state, **buffers}.values()))


def test_the_sum_that_a_recipe_publishes_is_checked(tmp_path: Path) -> None:
    recovered = make_delta(tmp_path, torch.float32, 1)
    wanted = sum_of(recovered, SHAPE["num_hidden_layers"], SHAPE["hidden_size"] // SHAPE["num_attention_heads"])
    words = {"delta": tmp_path / "delta", "options": WEIGHTS_ALONE}
    merge(tmp_path / "base", tmp_path / "right", expected_sum=wanted, **words)
    merge(tmp_path / "base", tmp_path / "right.gguf", dtype="f16", expected_sum=wanted, **words)
    with pytest.raises(
        InputError, match=rf"add up to {wanted:.2f}\d*, wanted {wanted + 0.5:.2f}\d* within 0.01"
    ) as caught:
        merge(tmp_path / "base", tmp_path / "wrong", expected_sum=wanted + 0.5, **words)
    assert "--no-integrity-check" in str(caught.value) and not (tmp_path / "wrong").exists()
    merge(tmp_path / "base", tmp_path / "wrong", expected_sum=wanted + 0.5, integrity_check=False, **words)


def test_one_changed_weight_of_the_base_shows_in_the_sum(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    recovered = make_delta(tmp_path, torch.float32, 1)
    wanted = sum_of(recovered, SHAPE["num_hidden_layers"], SHAPE["hidden_size"] // SHAPE["num_attention_heads"])
    state = load_file(tmp_path / "base" / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
    save_file(state, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="wanted"):
        merge(tmp_path / "base", tmp_path / "out", delta=tmp_path / "delta", options=WEIGHTS_ALONE, expected_sum=wanted)


def test_alpacas_sum_is_asked_of_its_own_shape_alone() -> None:
    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "vocab_size": 32001}
    config = {**shape, "head_dim": 128, "rope_theta": 10000.0}
    tensor = LazyTensor("w", (1,), F32, lambda start, stop: np.zeros((1, 4), np.uint8))
    base = Model("llama", {**config, "vocab_size": 32000}, None, {"w": tensor}, "meta", (Path("base"),))
    merged = Model("llama", config, None, {"w": tensor}, "safetensors", (Path("delta/x"),))
    found = published_sum(base, merged, None)
    assert found is not None and (found.value, found.tolerance) == (50637.1836, 0.01)
    assert sum(found.beside.values()) == pytest.approx(32 * 7.4600, abs=1e-2) and len(found.beside) == 32
    for changed in ({"vocab_size": 32000}, {"num_hidden_layers": 40}, {"intermediate_size": 11009}):
        assert published_sum(base, replace(merged, config={**config, **changed}), None) is None
    halves = {"w": replace(tensor, dtype=F16)}
    assert published_sum(base, replace(merged, tensors=halves), None) is None
    names = [
        *(
            "lm_head.weight",
            "model.norm.weight",
            "model.layers.10.mlp.up_proj.weight",
            "model.layers.2.input_layernorm.weight",
        ),
        *(
            "model.layers.2.self_attn.rotary_emb.inv_freq",
            "model.layers.2.mlp.down_proj.weight",
            "model.embed_tokens.weight",
        ),
    ]
    assert [names.index(name) for name in sorted(names, key=found.order)] == [6, 4, 5, 3, 2, 1, 0]


def test_an_adapter_of_a_tied_head_is_refused_with_the_reason(tmp_path: Path) -> None:
    make_base(tmp_path / "base", torch.float16, tied=True)
    factors = {"lm_head.lora_A.weight": torch.ones(4, 64), "lm_head.lora_B.weight": torch.ones(320, 4)}
    write_adapter(tmp_path / "adapter", factors)
    with pytest.raises(
        ModelError, match=r"the embedding would change too .*give the base a head of its own first"
    ) as caught:
        with_adapter(open_model(tmp_path / "base", WEIGHTS_ALONE), read_adapter(tmp_path / "adapter"))
    assert "\n" not in str(caught.value)


def test_peft_changes_the_embedding_where_an_adapter_changes_a_tied_head(tmp_path: Path) -> None:
    network = make_base(tmp_path / "base", torch.float32, tied=True)
    before = network.model.embed_tokens.weight.detach().clone()
    adapted = make_adapter(network, tmp_path / "adapter", {"r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]})
    tokens = torch.arange(1, 9)[None]
    with torch.no_grad():
        wanted = adapted(tokens).logits
        merged = adapted.merge_and_unload()
        got = merged(tokens).logits
    assert not torch.equal(merged.model.embed_tokens.weight, before)
    assert (got - wanted).abs().max() > 1e-2  # why smelt does not merge it
