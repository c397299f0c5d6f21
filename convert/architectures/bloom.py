"""BLOOM: ALiBi in place of positions, LayerNorm with biases everywhere, one fused projection, a tied head.

    canonical  query_key_value [n_head, 3, hd, d]   one head after another, of each its q, k, v
    GGUF       attn_qkv        [3, n_head, hd, d]   all queries, all keys, all values; biases alike

BloomConfig counts layers and heads as `n_layer` and `n_head` (the published files mix these with the usual names, and say
`n_embed` for the width and `seq_length` for the tokens it was trained on), so a config is written with both names. The
feed-forward is always 4 times as wide. ALiBi's slopes follow from the number of heads. A file by others may hold the head
as a tensor of its own, which is then kept.

Sources: transformers BloomConfig and modeling_bloom.py, the published config.json files; llama.cpp (models/bloom.cpp, gguf-py
constants).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..architecture import Fact, Family, Row
from ..checks import head_problems, value_problems
from ..layouts import Layout, fused
from ..rows import BLOCK, OUTPUT, bias_row

_NAMES = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
_LAYER = "transformer.h.{layer}."
_QKV = fused("num_attention_heads")


def _rows(role: str, canonical: str, gguf: str, *shape: str, layout: Layout | None = None) -> tuple[Row, Row]:
    """Weight and bias of a module."""
    layouts = {} if layout is None else {"gguf": layout}
    row = Row(role, f"{canonical}.weight", None, f"{gguf}.weight", None, shape, layouts)  # type: ignore[arg-type]
    return row, bias_row(row)


def _layer_rows(role: str, module: str, *shape: str, layout: Layout | None = None) -> tuple[Row, Row]:
    return _rows(role, f"{_LAYER}{module}", f"{BLOCK}{role}", *shape, layout=layout)


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Rows of the fused projection."""
    return {"qkv_rows": 3 * int(config["hidden_size"])}


def from_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with the usual names beside BLOOM's own, and what follows from it."""
    found = {key: value for key, value in config.items() if value is not None and key != "n_embed"}
    for own, usual in {**_NAMES, "n_embed": "hidden_size", "seq_length": "max_position_embeddings"}.items():
        if usual not in found and config.get(own) is not None:
            found[usual] = config[own]
    found |= {own: found[usual] for own, usual in _NAMES.items() if usual in found}
    if type(found.get("hidden_size")) is int:
        found.setdefault("intermediate_size", 4 * found["hidden_size"])
    return {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, **found}


def from_gguf(config: dict[str, Any]) -> dict[str, Any]:
    """The names that BloomConfig has."""
    return {**config, **{own: config[usual] for own, usual in _NAMES.items()}}


def checks(config: Mapping[str, Any]) -> list[str]:
    """Heads that do not divide the width, or fewer of keys than of queries; another width of the feed-forward."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    problems = head_problems(config)
    if width % heads:
        problems.append(f"hidden_size {width} does not divide by {heads} heads")
    problems += value_problems(config, "num_key_value_heads", heads)
    problems += value_problems(config, "intermediate_size", 4 * width)
    return problems + value_problems(config, "head_dim", width // heads)


FAMILY = Family(
    name="bloom",
    model_type="bloom",
    hugging_face_class="BloomForCausalLM",
    gguf="bloom",
    prefix="transformer.",
    rows=(
        Row(
            "token_embd",
            "transformer.word_embeddings.weight",
            None,
            "token_embd.weight",
            None,
            ("vocab_size", "hidden_size"),
        ),
        *_rows("token_embd_norm", "transformer.word_embeddings_layernorm", "token_embd_norm", "hidden_size"),
        *_layer_rows("attn_norm", "input_layernorm", "hidden_size"),
        *_layer_rows("attn_qkv", "self_attention.query_key_value", "qkv_rows", "hidden_size", layout=_QKV),
        *_layer_rows("attn_output", "self_attention.dense", "hidden_size", "hidden_size"),
        *_layer_rows("ffn_norm", "post_attention_layernorm", "hidden_size"),
        *_layer_rows("ffn_up", "mlp.dense_h_to_4h", "intermediate_size", "hidden_size"),
        *_layer_rows("ffn_down", "mlp.dense_4h_to_h", "hidden_size", "intermediate_size"),
        *_rows("output_norm", "transformer.ln_f", "output_norm", "hidden_size"),
        OUTPUT,
    ),
    facts=(
        Fact("max_position_embeddings", "context_length", "u32"),
        Fact("hidden_size", "embedding_length", "u32"),
        Fact("num_hidden_layers", "block_count", "u32"),
        Fact("intermediate_size", "feed_forward_length", "u32"),
        Fact("num_attention_heads", "attention.head_count", "u32"),
        Fact("num_key_value_heads", "attention.head_count_kv", "u32", required=False),
        Fact("layer_norm_epsilon", "attention.layer_norm_epsilon", "f32"),
    ),
    drops=(),
    constants={},
    sizes=sizes,
    from_config=from_config,
    from_gguf=from_gguf,
    checks=checks,
    gguf_checks=lambda config: value_problems(config, "apply_residual_connection_post_layernorm", False),
)
