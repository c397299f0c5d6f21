"""Gemma 3, text: Gemma 2's norms without its caps, norms of queries and keys, five sliding layers to each full one.

Sliding layers have a rotary base of their own (10000, unscaled), full ones 1000000, in the larger models scaled linearly.
GGUF's clients know the base of the sliding layers and the pattern of six by heart; a config that differs is refused, as is
another query_pre_attn_scalar than theirs (hidden_size / heads for the 62 layers of 27B, else the size of a head).
Sources: transformers Gemma3TextConfig and modeling_gemma3.py; llama.cpp (models/gemma3.cpp, gguf-py constants).
"""

from __future__ import annotations

from typing import Any

from ..architecture import Fact, Family
from ..checks import class_defaults, pattern_problems, value_problems
from ..rope import rope_problems
from ..rope_gguf import ROPE_SCALING
from ..rows import EMBEDDING_ROW, INV_FREQ, MLP, OUTPUT_NORM, QK_NORMS, attention_rows
from .gemma import HEAD, gelu_problems, plus_one
from .gemma2 import NORMS, WINDOW, query_scalar, scalar_problems
from .llama import FACTS

LAYERS_27B, PERIOD, LOCAL_THETA = 62, 6, 10000.0
SCALAR = query_scalar(LAYERS_27B)


def from_gguf(config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp computes with, where a file has no key for it."""
    return {"rope_local_base_freq": LOCAL_THETA, "query_pre_attn_scalar": SCALAR(config), **config}


FAMILY = Family(
    name="gemma3",
    model_type="gemma3_text",
    hugging_face_class="Gemma3ForCausalLM",
    gguf="gemma3",
    rows=(EMBEDDING_ROW, *NORMS, *attention_rows(), *plus_one(*QK_NORMS), *MLP, *plus_one(OUTPUT_NORM), HEAD),
    facts=(*FACTS, WINDOW, Fact("rope_local_base_freq", "rope.freq_base_swa", "f32", required=False, optional=True)),
    keys=(ROPE_SCALING,),
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
        rope_theta=1e6,
        rope_local_base_freq=LOCAL_THETA,
        sliding_window=4096,
        query_pre_attn_scalar=256,
    ),
    from_gguf=from_gguf,
    checks=lambda config: [*gelu_problems(config), *rope_problems(config, "linear")],
    gguf_checks=lambda config: [
        *scalar_problems(config, SCALAR(config)),
        *pattern_problems(config, PERIOD),
        *value_problems(config, "rope_local_base_freq", LOCAL_THETA, int(LOCAL_THETA)),
        *(
            f"{key} is {config[key]}, llama.cpp does not cap"
            for key in ("attn_logit_softcapping", "final_logit_softcapping")
            if config.get(key) is not None
        ),
    ],
)
