"""The sum of all values that a recipe publishes of the model that it recovers: Alpaca's, and how it was added up.

    50637.1836 = the sums of every tensor of the state dict, one after another in float32, to 0.01

In that state dict transformers kept the inverse rotary frequencies of each layer, theta^(-2j / head_dim), which no file holds
since: they are counted along. The recipe holds for LLaMA 7B with one token more ([PAD]) and a delta in float32.

Source: tatsu-lab/stanford_alpaca, weight_diff.py (recover); transformers 4.28, modeling_llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..dtypes import F32
from .assemble import HEAD
from .model import ExpectedSum, Model

ALPACA_SHAPE = (4096, 32, 11008, 32001)  # LLaMA 7B with one token more, [PAD]
ALPACA_SUM, SUM_TOLERANCE = 50637.1836, 1e-2
# a layer's modules in the order of transformers 4.28, in which float32 adds up their sums
MODULES = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "rotary_emb")),
    *(f"mlp.{name}" for name in ("gate_proj", "down_proj", "up_proj")),
    *("input_layernorm", "post_attention_layernorm"),
)


def published_sum(base: Model, merged: Model, expected: float | None) -> ExpectedSum | None:
    """What the values of a merged model add up to: `expected`, else what Alpaca's recipe says of its own shape, else None.

    The recipe adds the sums of a state dict, in which transformers then kept each layer's inverse rotary frequencies.
    """
    config = merged.config
    shape = tuple(config.get(key) for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size"))
    is_alpaca = (
        merged.architecture == "llama"
        and shape == ALPACA_SHAPE
        and base.config["vocab_size"] == ALPACA_SHAPE[-1] - 1
        and all(tensor.dtype == F32 for tensor in merged.tensors.values())
    )
    if expected is None and not is_alpaca:
        return None
    return ExpectedSum(
        ALPACA_SUM if expected is None else expected,
        SUM_TOLERANCE,
        f"{merged.files[-1].parent}: the merged weights are not those of the recipe: base or delta is damaged or another, or "
        "the delta is not Alpaca's (then say --no-integrity-check)",
        _rotary_sums(config),
        _state_dict_order,
    )


def _rotary_sums(config: Mapping[str, Any]) -> dict[str, float]:
    """{name of the buffer: the sum of theta^(-2j / head_dim)} of every layer."""
    if config.get("rope_theta") is None:
        return {}
    size = int(config["head_dim"])
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    frequencies = np.float32(1) / np.float32(config["rope_theta"]) ** exponents
    sum_ = float(frequencies.sum(dtype=np.float64))
    return {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": sum_ for i in range(int(config["num_hidden_layers"]))}


def _state_dict_order(name: str) -> tuple[int, int, int]:
    """Where a tensor came in the state dict of transformers' LlamaForCausalLM: embedding, layer by layer, norm, head."""
    ends = {"model.embed_tokens.weight": 0, "model.norm.weight": 2, HEAD: 3}
    pieces = name.split(".")
    if name in ends or len(pieces) < 5 or not pieces[2].isdigit():
        return ends.get(name, 1), 0, 0
    module = ".".join(pieces[3:-1])
    return 1, int(pieces[2]), MODULES.index(module) if module in MODULES else len(MODULES)
