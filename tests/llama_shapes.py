"""Models of the published LLaMA shapes, and odder ones, whose tensors hold nothing: what recipes are tried on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from smelt.convert.model import LazyTensor, Model
from smelt.dtypes import F16


def _nothing(_start: int, _stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.empty((0, 0), np.uint8)


def shaped(n_layers: int, heads: int, kv_heads: int, hidden: int, ffn: int, vocab: int, *, tied: bool = False) -> Model:
    """A LLaMA of that shape whose tensors hold nothing."""
    head_dim = hidden // heads
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
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
    tensors = {name: LazyTensor(name, shape, F16, _nothing) for name, shape in shapes.items()}
    config = {"num_hidden_layers": n_layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return Model("llama", config, None, tensors, "meta", (Path("none"),))


SHAPES = {
    "LLAMA_7B": shaped(32, 32, 32, 4096, 11008, 32000),
    "LLAMA_13B": shaped(40, 40, 40, 5120, 13824, 32000),
    "LLAMA_65B": shaped(80, 64, 64, 8192, 22016, 32000),
    "LLAMA2_70B": shaped(80, 64, 8, 8192, 28672, 32000),
}
