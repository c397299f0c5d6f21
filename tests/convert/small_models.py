"""A small random model of every family as transformers saves it, with its kind of vocabulary: what conversions are tried on.

`write(folder, "qwen2")` makes config.json, model.safetensors and the tokenizer's files. `SMALL` has every model by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_checkpoints import tokenizer_model
from smelt.convert.architecture import Family, family_by
from smelt.convert.tokenizer import read_sentencepiece
from smelt.convert.tokenizer_files import hugging_face_files
from smelt.convert.tokenizer_tiktoken import N_SPECIAL, read_tiktoken
from smelt.formats.gguf import GGUFArray, GGUFValue, gguf_layout, open_gguf
from smelt.formats.safetensors import open_safetensors

from .byte_level import trained_json, trained_ranks

transformers = pytest.importorskip("transformers", reason="it writes the models and computes their logits")
torch.set_num_threads(1)  # matrices this small only wait for one another on two threads

VOCAB = 512
TOKENS = torch.tensor([1, *range(5, 85)])
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 64,
    "long_factor": [1.0, 1.5, 2.25, 3.5, 5.0, 7.0, 9.0, 11.1],
    "short_factor": [1.0, 1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.55],
}
OPT = {"num_key_value_heads": 4, "ffn_dim": 96, "pad_token_id": 1, "bos_token_id": 2}
SENTENCEPIECE, GPT2_PAIR, RANKS = "SentencePiece", "vocab.json and merges.txt", "tokenizer.json of ranks"
N_RANKS = 400
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}\r\n"


@dataclass(frozen=True)
class Tiny:
    """A small random model of a family: what its config says beyond `SIZES`.

    center      where its norms lie
    embedding   the spread of its embedding, which makes the logits where the head is tied
    gelu        the share of its feed-forward: ggml's GELU is a table of fp16 values, right to 5e-4 of their size
    vocabulary  SENTENCEPIECE, GPT2_PAIR, RANKS, or the rules of a tokenizer.json by their name in GGUF
    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    center: float = 1.0
    embedding: float = 1.0
    gelu: float = 1.0
    vocabulary: str = SENTENCEPIECE


def _llama3(factor: float, original: int = 64, **more: Any) -> Tiny:
    scaling = {**LLAMA3, "factor": factor, "original_max_position_embeddings": original}
    sizes = {"rope_theta": 500000.0, "rope_scaling": scaling, "vocab_size": N_RANKS + N_SPECIAL}
    return Tiny("llama", sizes | more, vocabulary=RANKS)


_GELU = {"center": 0.0, "embedding": 0.03, "gelu": 0.25}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32}
TINY = {
    "llama": Tiny("llama"),
    "llama 3": _llama3(8.0),
    "llama 3.2, tied": _llama3(32.0, tie_word_embeddings=True),
    "llama, biases": Tiny("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Tiny("mistral", {"head_dim": 32, "sliding_window": None}),
    "mixtral": Tiny("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Tiny("qwen2", {"rope_theta": 1e6}, vocabulary="qwen2"),
    "qwen2, tied": Tiny("qwen2", {"tie_word_embeddings": True}, vocabulary="qwen2"),
    "qwen3": Tiny("qwen3", {"head_dim": 32, "rope_theta": 1e6}, vocabulary="qwen2"),
    "gemma": Tiny("gemma", {"head_dim": 32}, **_GELU),
    "gemma2": Tiny("gemma2", _GEMMA, **_GELU),
    "gemma3": Tiny("gemma3", _GEMMA | {"num_hidden_layers": 7}, **_GELU),
    "bloom": Tiny("bloom", {"num_key_value_heads": 4, "intermediate_size": 256}, embedding=0.03, vocabulary="bloom"),
    "bloom, six heads": Tiny(
        "bloom",
        {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 384},
        embedding=0.03,
        vocabulary="bloom",
    ),
    "opt": Tiny("opt", OPT, vocabulary=GPT2_PAIR),
    "opt, 350M": Tiny("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 32}, vocabulary=GPT2_PAIR),
    "opt, no final norm": Tiny(
        "opt", OPT | {"_remove_final_layer_norm": True, "tie_word_embeddings": False}, vocabulary=GPT2_PAIR
    ),
    "opt, Galactica": Tiny(
        "opt",
        OPT | {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
        vocabulary=GPT2_PAIR,
    ),
}
# rotary scaling beyond Llama 3's, which test_rope.py has in every spelling
SCALED = {
    "llama, linear": Tiny("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama, yarn": Tiny("llama", {"rope_scaling": YARN}),
    "llama, longrope": Tiny("llama", {"rope_scaling": LONG}),
    "llama, dynamic": Tiny("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    "llama 3.2, 8192 tokens, tied": _llama3(32.0, original=8192, tie_word_embeddings=True),
    "qwen2, yarn": Tiny("qwen2", {"rope_scaling": {**YARN, "attention_factor": 1.3}}, vocabulary="qwen2"),
    "gemma3, linear": Tiny(
        "gemma3",
        _GEMMA | {"num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        **_GELU,
    ),
}
SMALL = TINY | SCALED


def write(folder: Path, name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Hugging Face folder of random weights, scaled so that each layer matters, with the tokenizer's files."""
    tiny = SMALL[name]
    family = family_by("name", tiny.family, name)
    said = deepcopy(SIZES | dict(tiny.config) | changes)  # transformers writes into dicts that it is given
    settings = transformers.AutoConfig.for_model(family.model_type, **said)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1:
                weight.copy_(values * (tiny.embedding if "embed" in key else weight.shape[-1] ** -0.5))
                weight.mul_(tiny.gelu if "down_proj" in key else 1)
            else:
                weight.copy_(values * 0.1 + (0 if key.endswith("bias") else tiny.center))
                weight.add_(tiny.gelu - 1 if "post_feedforward" in key else 0)
    model.to(dtype).save_pretrained(folder)
    for file, content in vocabulary_files(tiny.vocabulary, spaced=tiny.family.startswith("gemma")).items():
        (folder / file).write_bytes(content)
    return folder


def vocabulary_files(kind: str, *, spaced: bool = False) -> dict[str, bytes]:
    """{name: content} of `VOCAB` tokens in files as the releases have them; `spaced`: no space is put before a text."""
    if kind == SENTENCEPIECE:
        model = tokenizer_model(VOCAB, dummy_prefix=not spaced)
        return hugging_face_files(read_sentencepiece(model), 128) | {"chat_template.jinja": TEMPLATE.encode()}
    if kind == RANKS:
        return hugging_face_files(read_tiktoken(trained_ranks(N_RANKS), llama3_1=True), 128)
    content = trained_json("gpt-2" if kind == GPT2_PAIR else kind, VOCAB - 2)
    if kind != GPT2_PAIR:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": TEMPLATE}
        return {"tokenizer.json": content, "tokenizer_config.json": json.dumps(settings, indent="\t").encode()}
    held = json.loads(content)
    added = {token["content"]: token["id"] for token in held["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in held["model"]["merges"]]
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|end|>", "add_bos_token": True}
    return {
        "vocab.json": json.dumps(held["model"]["vocab"] | added).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *merges, "")).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "special_tokens_map.json": b'{"bos_token":   "<|end|>"}',
    }


def is_of_llama_cpp(family: Family) -> bool:
    """Whether llama.cpp has the family's architecture."""
    return not family.gguf_note.startswith("llama.cpp has no")


def logits(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(TOKENS[None], use_cache=False).logits[0].numpy()


def payloads(folder: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """{name: (shape, dtype, bytes)} of a folder's tensors."""
    found = open_safetensors(folder).tensors
    return {
        name: (tensor.shape, tensor.dtype.name, tensor.read(0, int(np.prod(tensor.shape[:-1]))).tobytes())
        for name, tensor in found.items()
    }


def rewritten(source: Path, target: Path, drop: str, **changes: GGUFValue) -> Path:
    """A copy of a GGUF file without the keys that start with `drop`, and with other values."""
    found = open_gguf(source)
    types = {bool: "bool", int: "u32", float: "f32", str: "string"}
    metadata = {}
    for key in found.metadata:
        value = found.metadata[key]
        if not key.startswith(drop):
            kind = f"[{value.element_type}]" if isinstance(value, GGUFArray) else types[type(value)]
            metadata[key] = GGUFValue(kind, value)
    layout = gguf_layout(list(found.tensors.values()), metadata | changes)
    content = bytearray(layout.nbytes)
    for offset, piece in layout.pieces:
        content[offset : offset + len(piece)] = piece
    for name, tensor in found.tensors.items():
        raw = tensor.read(0, int(np.prod(tensor.shape[:-1]))).tobytes()
        content[layout.slots[name] : layout.slots[name] + len(raw)] = raw
    target.write_bytes(content)
    return target
