"""Qwen 3, dense: no biases, an RMSNorm of each head's queries and keys before they are rotated, heads of 128.

Sources: transformers Qwen3Config and modeling_qwen3.py; llama.cpp (gguf-py constants, Qwen3Model).
"""

from __future__ import annotations

from ..architecture import Family
from ..checks import class_defaults, head_problems, value_problems
from ..rope import SCALINGS, rope_problems
from ..rope_gguf import ROPE_SCALING
from ..rows import (
    ATTENTION_NORM,
    EMBEDDING_ROW,
    FFN_NORM,
    INV_FREQ,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    attention_rows,
)
from .llama import FACTS
from .qwen2 import gguf_checks

FAMILY = Family(
    name="qwen3",
    model_type="qwen3",
    hugging_face_class="Qwen3ForCausalLM",
    gguf="qwen3",
    rows=(EMBEDDING_ROW, ATTENTION_NORM, *attention_rows(), *QK_NORMS, FFN_NORM, *MLP, OUTPUT_NORM, OUTPUT),
    facts=FACTS,
    keys=(ROPE_SCALING,),
    drops=(INV_FREQ,),
    constants={"hidden_act": "silu", "rope_scaling": None, "attention_bias": False},
    from_config=class_defaults(head_dim=128, num_key_value_heads=32, sliding_window=4096, rope_theta=10000.0),
    from_gguf=class_defaults(sliding_window=None),  # llama.cpp attends to every token
    checks=lambda config: [
        *head_problems(config),
        *rope_problems(config, *SCALINGS),
        *value_problems(config, "hidden_act", "silu"),
        *value_problems(config, "attention_bias", False),
    ],
    gguf_checks=gguf_checks,
)
