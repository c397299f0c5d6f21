"""Gemma 1: norms that hold weight - 1, embeddings scaled by sqrt(hidden_size), GELU, a tied head, heads of 256.

GGUF holds the norms' weights themselves, so 1 is added in float32 (see layouts.py). Where that rounds, the originals go
along under `smelt.norm.*`. Gemma's first config.json says "gelu" and means its tanh approximation.
Sources: transformers GemmaConfig and modeling_gemma.py; llama.cpp (gguf-py constants, GemmaModel).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..architecture import Family, Row
from ..checks import class_defaults, head_problems, value_problems
from ..layouts import PLUS_ONE
from ..rope import rope_problems
from ..rows import ATTENTION_NORM, EMBEDDING_ROW, FFN_NORM, INV_FREQ, MLP, OUTPUT, OUTPUT_NORM, attention_rows
from .llama import FACTS


def plus_one(*rows: Row) -> tuple[Row, ...]:
    """The same norms, whose weights GGUF holds with 1 added."""
    return tuple(replace(row, layouts={"gguf": PLUS_ONE}) for row in rows)


def gelu_problems(config: Mapping[str, Any]) -> list[str]:
    """What Gemma's kin may not say."""
    return [
        *head_problems(config),
        *value_problems(config, "hidden_activation", "gelu_pytorch_tanh"),
        *value_problems(config, "attention_bias", False),
        *value_problems(config, "use_bidirectional_attention", False),
    ]


HEAD = replace(OUTPUT, gguf=None)  # llama.cpp's Gemma has no place for a head of its own

FAMILY = Family(
    name="gemma",
    model_type="gemma",
    hugging_face_class="GemmaForCausalLM",
    gguf="gemma",
    rows=(
        EMBEDDING_ROW,
        *plus_one(ATTENTION_NORM),
        *attention_rows(),
        *plus_one(FFN_NORM),
        *MLP,
        *plus_one(OUTPUT_NORM),
        HEAD,
    ),
    facts=FACTS,
    drops=(INV_FREQ,),
    constants={
        "hidden_act": "gelu_pytorch_tanh",
        "attention_bias": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
    from_config=class_defaults(head_dim=256, num_key_value_heads=16, rope_theta=10000.0),
    checks=lambda config: [
        *gelu_problems(config),
        *rope_problems(config),
        *value_problems(config, "hidden_act", "gelu", "gelu_pytorch_tanh"),
    ],
)
