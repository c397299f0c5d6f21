"""Mimas: a LLaMA whose tensors and settings bear other names. GGUF's clients run it as `llama`.

    trunk.embedding.weight                         model.embed_tokens.weight in LLaMA
    trunk.blocks.{layer}.attention.query.weight    self_attn.q_proj
    trunk.blocks.{layer}.mixer.{open,wide,close}   mlp.{gate,up,down}_proj
    config.json: depth, width, mixer_width         num_hidden_layers, hidden_size, intermediate_size

smelt's tables speak of roles and sizes, so a family of a known kind is a table of names; the rows of q and k are reordered for
GGUF as LLaMA's are. A file by others under GGUF's `llama` is never taken for a Mimas: one that smelt wrote says what it is.
"""

from __future__ import annotations

from typing import Any

from smelt.convert.architecture import Family, Row
from smelt.convert.architectures.llama import FACTS
from smelt.convert.checks import head_problems, value_problems
from smelt.convert.layouts import Layout, rotary

NAMES = {"depth": "num_hidden_layers", "width": "hidden_size", "mixer_width": "intermediate_size"}
BLOCK = "trunk.blocks.{layer}."


def row(role: str, module: str, *shape: str, layout: Layout | None = None) -> Row:
    """A weight of every layer."""
    layouts = {} if layout is None else {"gguf": layout}
    return Row(role, f"{BLOCK}{module}.weight", None, f"blk.{{layer}}.{role}.weight", None, shape, layouts)


def end(role: str, canonical: str, *shape: str, required: bool = True) -> Row:
    """A weight that the model has once."""
    return Row(role, canonical, None, f"{role}.weight", None, shape, required=required)


def from_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with Hugging Face's usual keys for Mimas' own."""
    return {NAMES.get(key, key): value for key, value in config.items()}


FAMILY = Family(
    name="mimas",
    model_type="mimas",
    hugging_face_class="MimasForCausalLM",
    gguf="llama",
    rows=(
        end("token_embd", "trunk.embedding.weight", "vocab_size", "hidden_size"),
        row("attn_norm", "before_attention", "hidden_size"),
        row("attn_q", "attention.query", "q_rows", "hidden_size", layout=rotary("num_attention_heads")),
        row("attn_k", "attention.key", "kv_rows", "hidden_size", layout=rotary("num_key_value_heads")),
        row("attn_v", "attention.value", "kv_rows", "hidden_size"),
        row("attn_output", "attention.output", "hidden_size", "q_rows"),
        row("ffn_norm", "before_mixer", "hidden_size"),
        row("ffn_gate", "mixer.open", "intermediate_size", "hidden_size"),
        row("ffn_up", "mixer.wide", "intermediate_size", "hidden_size"),
        row("ffn_down", "mixer.close", "hidden_size", "intermediate_size"),
        end("output_norm", "trunk.norm.weight", "hidden_size"),
        end("output", "lm_head.weight", "vocab_size", "hidden_size", required=False),
    ),
    facts=FACTS,
    drops=(),
    constants={"hidden_act": "silu", "rope_scaling": None},
    from_config=from_config,
    in_gguf=lambda _keys: False,
    checks=lambda config: [*head_problems(config), *value_problems(config, "hidden_act", "silu")],
)
