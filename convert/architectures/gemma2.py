"""Gemma 2: Gemma with norms before and after attention and feed-forward, every other layer sliding, soft-capped scores.

    scores = cap tanh(q k / (sqrt(query_pre_attn_scalar) cap))        logits = cap tanh(h W / cap)

GGUF has no key for query_pre_attn_scalar: llama.cpp takes hidden_size / heads for the model of 46 layers (27B) and the size
of a head for all others, so a config that says something else is refused. Even layers slide.
Sources: transformers Gemma2Config and modeling_gemma2.py; llama.cpp (models/gemma2.cpp, gguf-py constants).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import quoted
from ..architecture import Fact, Family
from ..checks import class_defaults, pattern_problems
from ..rope import rope_problems
from ..rows import ATTENTION_NORM, EMBEDDING_ROW, INV_FREQ, MLP, OUTPUT_NORM, attention_rows, layer_row
from .gemma import HEAD, gelu_problems, plus_one
from .llama import FACTS

LAYERS_27B = 46

NORMS = plus_one(
    ATTENTION_NORM,
    layer_row("post_attention_norm", "post_attention_layernorm", "hidden_size"),
    layer_row("ffn_norm", "pre_feedforward_layernorm", "hidden_size"),
    layer_row("post_ffw_norm", "post_feedforward_layernorm", "hidden_size"),
)
WINDOW = Fact("sliding_window", "attention.sliding_window", "u32")


def query_scalar(layers_27b: int) -> Callable[[Mapping[str, Any]], int]:
    """config -> the query_pre_attn_scalar that llama.cpp computes with; `layers_27b` is how it knows the 27B model."""

    def scalar(config: Mapping[str, Any]) -> int:
        if config["num_hidden_layers"] == layers_27b:
            return int(config["hidden_size"] // config["num_attention_heads"])
        return int(config["head_dim"])

    return scalar


def scalar_problems(config: Mapping[str, Any], wanted: int) -> list[str]:
    """A query_pre_attn_scalar that GGUF cannot tell."""
    said = config.get("query_pre_attn_scalar")
    return [] if said == wanted else [f"query_pre_attn_scalar is {quoted(said)}, llama.cpp computes with {wanted}"]


SCALAR = query_scalar(LAYERS_27B)


def from_gguf(config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp computes with, where a file has no key for it."""
    return {"query_pre_attn_scalar": SCALAR(config), **config}


FAMILY = Family(
    name="gemma2",
    model_type="gemma2",
    hugging_face_class="Gemma2ForCausalLM",
    gguf="gemma2",
    rows=(EMBEDDING_ROW, *NORMS, *attention_rows(), *MLP, *plus_one(OUTPUT_NORM), HEAD),
    facts=(
        *FACTS,
        WINDOW,
        Fact("attn_logit_softcapping", "attn_logit_softcapping", "f32", optional=True),
        Fact("final_logit_softcapping", "final_logit_softcapping", "f32", optional=True),
    ),
    drops=(INV_FREQ,),
    constants={
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
    from_config=class_defaults(
        head_dim=256,
        num_key_value_heads=4,
        rope_theta=10000.0,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    from_gguf=from_gguf,
    checks=lambda config: [*gelu_problems(config), *rope_problems(config)],
    gguf_checks=lambda config: [
        *scalar_problems(config, SCALAR(config)),
        *pattern_problems(config, 2),
        *(
            f"{key} is null, llama.cpp always caps"
            for key in ("attn_logit_softcapping", "final_logit_softcapping")
            if config.get(key) is None
        ),
    ],
)
