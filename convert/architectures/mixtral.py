"""Mixtral: Mistral's attention, and in place of the feed-forward some experts, of which a router picks a few per token.

    canonical  block_sparse_moe.experts.{expert}.w1.weight [F, d]      GGUF  ffn_gate_exps.weight [experts, F, d]
                                                 w3                          ffn_up_exps
                                                 w2        [d, F]            ffn_down_exps        [experts, d, F]
    canonical  block_sparse_moe.gate.weight [experts, d]               GGUF  ffn_gate_inp.weight

GGUF's architecture is `llama` with `expert_count`. Sources: transformers MixtralConfig; llama.cpp, convert_hf_to_gguf.py.
"""

from __future__ import annotations

from ..architecture import Fact, Family, Row
from ..checks import class_defaults, head_problems, value_problems, window_problems
from ..layouts import rotary
from ..rope import SCALINGS, rope_problems
from ..rope_gguf import DIVISORS, LIKE_LLAMA, ROPE_SCALING, rope_gguf_problems
from ..rows import (
    ATTENTION_NORM,
    BLOCK,
    EMBEDDING_ROW,
    FFN_NORM,
    INV_FREQ,
    LAYER,
    OUTPUT,
    OUTPUT_NORM,
    attention_rows,
    layer_row,
)
from .llama import FACTS


def _expert(role: str, name: str, *shape: str) -> Row:
    canonical = f"{LAYER}block_sparse_moe.experts.{{expert}}.{name}.weight"
    return Row(role, canonical, None, f"{BLOCK}{role}.weight", None, shape)


FAMILY = Family(
    name="mixtral",
    model_type="mixtral",
    hugging_face_class="MixtralForCausalLM",
    gguf="llama",
    rows=(
        EMBEDDING_ROW,
        ATTENTION_NORM,
        *attention_rows(rotary("num_attention_heads"), rotary("num_key_value_heads")),
        FFN_NORM,
        layer_row("ffn_gate_inp", "block_sparse_moe.gate", "num_local_experts", "hidden_size"),
        _expert("ffn_gate_exps", "w1", "intermediate_size", "hidden_size"),
        _expert("ffn_up_exps", "w3", "intermediate_size", "hidden_size"),
        _expert("ffn_down_exps", "w2", "hidden_size", "intermediate_size"),
        OUTPUT_NORM,
        OUTPUT,
    ),
    facts=(
        *FACTS,
        Fact("num_local_experts", "expert_count", "u32"),
        Fact("num_experts_per_tok", "expert_used_count", "u32"),
    ),
    keys=(ROPE_SCALING,),
    derived=DIVISORS,
    drops=(INV_FREQ,),
    constants={"hidden_act": "silu", "rope_scaling": None},
    experts="num_local_experts",
    from_config=class_defaults(num_key_value_heads=8, sliding_window=None, rope_theta=1e6),
    from_gguf=class_defaults(sliding_window=None),  # llama.cpp attends to every token
    in_gguf=lambda keys: keys.get("expert_count") not in (None, 0),
    checks=lambda config: [
        *head_problems(config),
        *rope_problems(config, *SCALINGS),
        *value_problems(config, "hidden_act", "silu"),
        *(
            ["more experts are used than there are"]
            if config["num_experts_per_tok"] > config["num_local_experts"]
            else []
        ),
    ],
    gguf_checks=lambda config: [*window_problems(config), *rope_gguf_problems(config, *LIKE_LLAMA)],
)
