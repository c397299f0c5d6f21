"""Qwen 2 and 2.5: LLaMA's shape with biases on q, k and v. GGUF's `qwen2` rotates halves as Hugging Face does.

Small ones tie the head to the embedding. Layers from `max_window_layers` on slide only where `use_sliding_window` says so.
Sources: transformers Qwen2Config and modeling_qwen2.py; llama.cpp (gguf-py constants, Qwen2Model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architecture import Family
from ..checks import class_defaults, head_problems, value_problems, window_problems
from ..rope import SCALINGS, rope_problems
from ..rope_gguf import LIKE_QWEN, ROPE_SCALING, rope_gguf_problems
from ..rows import (
    ATTENTION_NORM,
    EMBEDDING_ROW,
    FFN_NORM,
    INV_FREQ,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    attention_rows,
    bias_row,
)
from .llama import FACTS

ATTENTION = attention_rows()


def gguf_checks(config: Mapping[str, Any]) -> list[str]:
    """A window that is in use, and rotary scaling that llama.cpp does not have here."""
    windows = window_problems(config) if config.get("use_sliding_window") else []
    return [*windows, *rope_gguf_problems(config, *LIKE_QWEN)]


FAMILY = Family(
    name="qwen2",
    model_type="qwen2",
    hugging_face_class="Qwen2ForCausalLM",
    gguf="qwen2",
    rows=(
        EMBEDDING_ROW,
        ATTENTION_NORM,
        *ATTENTION,
        *(bias_row(row) for row in ATTENTION[:3]),
        FFN_NORM,
        *MLP,
        OUTPUT_NORM,
        OUTPUT,
    ),
    facts=FACTS,
    keys=(ROPE_SCALING,),
    drops=(INV_FREQ,),
    constants={"hidden_act": "silu", "rope_scaling": None},
    from_config=class_defaults(num_key_value_heads=32, sliding_window=4096, rope_theta=10000.0),
    from_gguf=class_defaults(sliding_window=None),  # llama.cpp attends to every token
    checks=lambda config: [
        *head_problems(config),
        *rope_problems(config, *SCALINGS),
        *value_problems(config, "hidden_act", "silu"),
    ],
    gguf_checks=gguf_checks,
)
