"""Rows that decoders share: attention, gated feed-forward, norms and ends, under Hugging Face's and GGUF's names.

    model.layers.{layer}.<module>.weight     <->     blk.{layer}.<role>.weight

A family is made of these and of what is its own. Meta's names are LLaMA's alone: see architectures/llama.py.
"""

from __future__ import annotations

from dataclasses import replace

from .architecture import Row
from .layouts import Layout

LAYER, BLOCK = "model.layers.{layer}.", "blk.{layer}."


def layer_row(role: str, module: str, *shape: str, layout: Layout | None = None) -> Row:
    """The weight of one module of every layer; `layout` is GGUF's, where it is not canonical."""
    layouts = {} if layout is None else {"gguf": layout}
    return Row(role, f"{LAYER}{module}.weight", None, f"{BLOCK}{role}.weight", None, shape, layouts)  # type: ignore[arg-type]


def bias_row(weight: Row, when: str | None = None) -> Row:
    """The bias of the same module: one value for each row of its weight, laid out alike."""
    canonical, gguf = (name.removesuffix("weight") + "bias" for name in (weight.canonical, str(weight.gguf)))
    return replace(weight, canonical=canonical, meta=None, gguf=gguf, split=None, shape=weight.shape[:1], when=when)


def attention_rows(q: Layout | None = None, k: Layout | None = None) -> tuple[Row, ...]:
    """q, k, v, o; layouts where GGUF's rotary rows are pairs."""
    return (
        layer_row("attn_q", "self_attn.q_proj", "q_rows", "hidden_size", layout=q),
        layer_row("attn_k", "self_attn.k_proj", "kv_rows", "hidden_size", layout=k),
        layer_row("attn_v", "self_attn.v_proj", "kv_rows", "hidden_size"),
        layer_row("attn_output", "self_attn.o_proj", "hidden_size", "q_rows"),
    )


MLP = (
    layer_row("ffn_gate", "mlp.gate_proj", "intermediate_size", "hidden_size"),
    layer_row("ffn_up", "mlp.up_proj", "intermediate_size", "hidden_size"),
    layer_row("ffn_down", "mlp.down_proj", "hidden_size", "intermediate_size"),
)
EMBEDDING_ROW = Row(
    "token_embd", "model.embed_tokens.weight", None, "token_embd.weight", None, ("vocab_size", "hidden_size")
)
ATTENTION_NORM = layer_row("attn_norm", "input_layernorm", "hidden_size")
FFN_NORM = layer_row("ffn_norm", "post_attention_layernorm", "hidden_size")
QK_NORMS = (
    layer_row("attn_q_norm", "self_attn.q_norm", "head_dim"),
    layer_row("attn_k_norm", "self_attn.k_norm", "head_dim"),
)
OUTPUT_NORM = Row("output_norm", "model.norm.weight", None, "output_norm.weight", None, ("hidden_size",))
OUTPUT = Row("output", "lm_head.weight", None, "output.weight", None, ("vocab_size", "hidden_size"), required=False)
INV_FREQ = r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"  # a buffer that old transformers saved
