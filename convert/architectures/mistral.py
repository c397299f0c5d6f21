"""Mistral 7B, Nemo and Large: LLaMA's tensors, a head size of its own, in version 0.1 a sliding window.

GGUF has no architecture for it but `llama`, whose clients attend to every token. A file of others by that architecture is
read as `llama`; one that smelt wrote says in `smelt.config` that it is Mistral.

Sources: transformers MistralConfig and modeling_mistral.py; llama.cpp, convert_hf_to_gguf.py (MistralForCausalLM).
"""

from __future__ import annotations

from ..architecture import Family
from ..checks import class_defaults, head_problems, value_problems, window_problems
from ..layouts import rotary
from ..rope import SCALINGS, rope_problems
from ..rope_gguf import DIVISORS, LIKE_LLAMA, ROPE_SCALING, rope_gguf_problems
from ..rows import ATTENTION_NORM, EMBEDDING_ROW, FFN_NORM, INV_FREQ, MLP, OUTPUT, OUTPUT_NORM, attention_rows
from .llama import FACTS

FAMILY = Family(
    name="mistral",
    model_type="mistral",
    hugging_face_class="MistralForCausalLM",
    gguf="llama",
    rows=(
        EMBEDDING_ROW,
        ATTENTION_NORM,
        *attention_rows(rotary("num_attention_heads"), rotary("num_key_value_heads")),
        FFN_NORM,
        *MLP,
        OUTPUT_NORM,
        OUTPUT,
    ),
    facts=FACTS,
    keys=(ROPE_SCALING,),
    derived=DIVISORS,
    drops=(INV_FREQ,),
    constants={"hidden_act": "silu", "rope_scaling": None},
    from_config=class_defaults(num_key_value_heads=8, sliding_window=4096, rope_theta=10000.0),
    in_gguf=lambda _keys: False,
    checks=lambda config: [
        *head_problems(config),
        *rope_problems(config, *SCALINGS),
        *value_problems(config, "hidden_act", "silu"),
    ],
    gguf_checks=lambda config: [*window_problems(config), *rope_gguf_problems(config, *LIKE_LLAMA)],
)
