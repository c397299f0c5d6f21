"""LLaMA 1 and 2 (and every model of that shape): RMSNorm, rotary pairs, SwiGLU, grouped-query attention, no biases.

Meta rotates adjacent pairs (2j, 2j+1), Hugging Face rotates (j, j + head_dim/2); GGUF's `llama` does as Meta does. So
the rows of q_proj and k_proj are reordered between canonical and the other two (see layouts.py).

Sources: meta-llama/llama (model.py: ModelArgs, FeedForward, precompute_freqs_cis), the published params.json files,
ggml-org/llama.cpp (gguf-py constants), transformers LlamaConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...dtypes import Shape
from ...errors import ModelError, quoted
from ..architecture import Fact, Family, Row, real_number, whole_number

_LAYER = "model.layers.{layer}."
_Q = ("q_rows", "hidden_size")
_KV = ("kv_rows", "hidden_size")

ROWS = (
    Row(
        "token_embd",
        "model.embed_tokens.weight",
        "tok_embeddings.weight",
        "token_embd.weight",
        1,
        ("vocab_size", "hidden_size"),
    ),
    Row(
        "attn_norm",
        _LAYER + "input_layernorm.weight",
        "layers.{layer}.attention_norm.weight",
        "blk.{layer}.attn_norm.weight",
        None,
        ("hidden_size",),
    ),
    Row(
        "attn_q",
        _LAYER + "self_attn.q_proj.weight",
        "layers.{layer}.attention.wq.weight",
        "blk.{layer}.attn_q.weight",
        0,
        _Q,
        rotary="num_attention_heads",
    ),
    Row(
        "attn_k",
        _LAYER + "self_attn.k_proj.weight",
        "layers.{layer}.attention.wk.weight",
        "blk.{layer}.attn_k.weight",
        0,
        _KV,
        rotary="num_key_value_heads",
    ),
    Row(
        "attn_v",
        _LAYER + "self_attn.v_proj.weight",
        "layers.{layer}.attention.wv.weight",
        "blk.{layer}.attn_v.weight",
        0,
        _KV,
    ),
    Row(
        "attn_output",
        _LAYER + "self_attn.o_proj.weight",
        "layers.{layer}.attention.wo.weight",
        "blk.{layer}.attn_output.weight",
        1,
        ("hidden_size", "q_rows"),
    ),
    Row(
        "ffn_norm",
        _LAYER + "post_attention_layernorm.weight",
        "layers.{layer}.ffn_norm.weight",
        "blk.{layer}.ffn_norm.weight",
        None,
        ("hidden_size",),
    ),
    Row(
        "ffn_gate",
        _LAYER + "mlp.gate_proj.weight",
        "layers.{layer}.feed_forward.w1.weight",
        "blk.{layer}.ffn_gate.weight",
        0,
        ("intermediate_size", "hidden_size"),
    ),
    Row(
        "ffn_up",
        _LAYER + "mlp.up_proj.weight",
        "layers.{layer}.feed_forward.w3.weight",
        "blk.{layer}.ffn_up.weight",
        0,
        ("intermediate_size", "hidden_size"),
    ),
    Row(
        "ffn_down",
        _LAYER + "mlp.down_proj.weight",
        "layers.{layer}.feed_forward.w2.weight",
        "blk.{layer}.ffn_down.weight",
        1,
        ("hidden_size", "intermediate_size"),
    ),
    Row("output_norm", "model.norm.weight", "norm.weight", "output_norm.weight", None, ("hidden_size",)),
    Row(
        "output",
        "lm_head.weight",
        "output.weight",
        "output.weight",
        0,
        ("vocab_size", "hidden_size"),
        required=False,
    ),
)

FACTS = (
    Fact("max_position_embeddings", "context_length", "u32"),
    Fact("hidden_size", "embedding_length", "u32"),
    Fact("num_hidden_layers", "block_count", "u32"),
    Fact("intermediate_size", "feed_forward_length", "u32"),
    Fact("num_attention_heads", "attention.head_count", "u32"),
    Fact("num_key_value_heads", "attention.head_count_kv", "u32", required=False),
    Fact("rms_norm_eps", "attention.layer_norm_rms_epsilon", "f32"),
    Fact("rope_theta", "rope.freq_base", "f32", required=False),
    Fact("head_dim", "rope.dimension_count", "u32", required=False),
    Fact("head_dim", "attention.key_length", "u32", required=False),  # llama.cpp takes hidden_size / heads without them
    Fact("head_dim", "attention.value_length", "u32", required=False),
    Fact("vocab_size", "vocab_size", "u32", required=False),
)


class Published(NamedTuple):
    """What a published model's params.json leaves out, by the shape and the dtype it came in."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    dtype: str
    context: int
    name: str
    source: str


_LLAMA1 = "LLaMA paper (arXiv 2302.13971): trained at 2048 tokens, released in fp16"
_LLAMA2 = "Llama 2 paper (arXiv 2307.09288): trained at 4096 tokens, released in bf16"

PUBLISHED = (
    Published(4096, 32, 32, 32, "F16", 2048, "LLaMA 7B", _LLAMA1),
    Published(5120, 40, 40, 40, "F16", 2048, "LLaMA 13B", _LLAMA1),
    Published(6656, 60, 52, 52, "F16", 2048, "LLaMA 30B", _LLAMA1),
    Published(8192, 80, 64, 64, "F16", 2048, "LLaMA 65B", _LLAMA1),
    Published(4096, 32, 32, 32, "BF16", 4096, "Llama 2 7B", _LLAMA2),
    Published(5120, 40, 40, 40, "BF16", 4096, "Llama 2 13B", _LLAMA2),
    Published(8192, 80, 64, 8, "BF16", 4096, "Llama 2 70B", _LLAMA2),
)

PUBLISHED_VOCABULARY = 32000  # of every row above: the papers, section 2

ROPE_THETA = 10000.0  # meta-llama/llama model.py, precompute_freqs_cis: fixed for files whose params.json has no theta


def from_params(params: Mapping[str, Any], shapes: Mapping[str, Shape], dtype: str) -> dict[str, Any]:
    """Meta's params.json -> canonical config. `shapes` are the joined ones by Meta name; `dtype` is the matrices'.

    `max_position_embeddings` is left out where neither the file nor a published row tells it. ModelError lists what
    else is missing.
    """
    missing = [key for key in ("dim", "n_layers", "n_heads", "norm_eps") if params.get(key) is None]
    needed = ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight", "layers.0.attention.wk.weight")
    missing += [name for name in needed if len(shapes.get(name, ())) != 2]
    if missing:
        raise ModelError(f"params.json and the weights leave out {', '.join(missing)}: this is no LLaMA checkpoint")
    if params.get("use_scaled_rope"):
        raise ModelError("params.json says use_scaled_rope: Llama 3.1's rotary scaling is not supported by smelt yet")
    dim, n_layers, n_heads = (
        whole_number(params[key], f"params.json: {key}") for key in ("dim", "n_layers", "n_heads")
    )
    if dim % n_heads:
        raise ModelError(f"params.json: dim {dim} does not divide by n_heads {n_heads}")
    given = {key: value for key, value in params.items() if value is not None}
    n_kv_heads = whole_number(given.get("n_kv_heads", n_heads), "params.json: n_kv_heads")
    head_dim = dim // n_heads
    config: dict[str, Any] = {
        "hidden_size": dim,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": shapes["layers.0.feed_forward.w1.weight"][0],
        "rms_norm_eps": real_number(params["norm_eps"], "params.json: norm_eps"),
        "rope_theta": real_number(given.get("rope_theta", ROPE_THETA), "params.json: rope_theta"),
        "vocab_size": shapes["tok_embeddings.weight"][0],
    }
    named = params.get("vocab_size")
    if named not in (None, -1, config["vocab_size"]):
        raise ModelError(
            f"params.json says vocab_size {quoted(named)}, tok_embeddings.weight has {config['vocab_size']} rows"
        )
    context = params.get("max_seq_len")
    if context is None:
        shape = (dim, n_layers, n_heads, n_kv_heads, dtype)
        context = next((row.context for row in PUBLISHED if row[:5] == shape and "rope_theta" not in params), None)
    if context is not None:
        config["max_position_embeddings"] = whole_number(context, "params.json: max_seq_len")
    return config


def feed_forward_width(params: Mapping[str, Any]) -> int:
    """The rows of w1 by Meta's rule, in its integer steps. ModelError where params.json leaves out what it needs."""
    dim = whole_number(params.get("dim"), "params.json: dim")
    multiple = whole_number(params.get("multiple_of"), "params.json: multiple_of")
    width = int(2 * (4 * dim) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(real_number(params["ffn_dim_multiplier"], "params.json: ffn_dim_multiplier") * width)
    return multiple * -(-width // multiple)


def shapes_from_params(params: Mapping[str, Any], vocab_size: int | None) -> tuple[dict[str, Shape], str]:
    """What the weights of a params.json will be: ({Meta name: whole shape}, dtype), before there are any.

    `vocab_size` None: a published shape's. ModelError where nothing tells the vocabulary.
    """
    dim, n_layers, n_heads = (
        whole_number(params.get(key), f"params.json: {key}") for key in ("dim", "n_layers", "n_heads")
    )
    n_kv_heads = whole_number(params.get("n_kv_heads") or n_heads, "params.json: n_kv_heads")
    row = next((row for row in PUBLISHED if row[:4] == (dim, n_layers, n_heads, n_kv_heads)), None)
    if vocab_size is None and row is None:
        raise ModelError(
            "params.json leaves out the vocabulary, and its shape is none of the published: say --vocab-size"
        )
    sizes = {
        "hidden_size": dim,
        "q_rows": dim,
        "kv_rows": dim // n_heads * n_kv_heads,
        "intermediate_size": feed_forward_width(params),
        "vocab_size": PUBLISHED_VOCABULARY if vocab_size is None else vocab_size,
    }
    shapes = {
        row.meta.replace("{layer}", str(layer)): tuple(sizes[size] for size in row.shape)
        for row in ROWS
        if row.meta is not None
        for layer in range(n_layers if "{layer}" in row.meta else 1)
    }
    return shapes, "F16" if row is None else row.dtype


def checks(config: Mapping[str, Any]) -> list[str]:
    """What a `llama` config may not say, because the shared tables would get it wrong."""
    problems = []
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        problems.append(f"{heads} query heads do not divide among {kv_heads} key-value heads")
    if config.get("rope_scaling") is not None:
        problems.append(f"rope_scaling {quoted(config['rope_scaling'])} is not supported by smelt yet")
    if config.get("partial_rotary_factor", 1) != 1:
        problems.append(
            f"partial_rotary_factor {quoted(config['partial_rotary_factor'])} is not supported by smelt yet"
        )
    problems += [f"{key} is set: biases have no row" for key in ("attention_bias", "mlp_bias") if config.get(key)]
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act {quoted(config['hidden_act'])} is not silu")
    return problems


FAMILY = Family(
    name="llama",
    model_type="llama",
    hugging_face_class="LlamaForCausalLM",
    gguf="llama",
    rows=ROWS,
    facts=FACTS,
    drops=(r"rope\.freqs", r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
    constants={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "rope_scaling": None,
    },
    from_params=from_params,
    shapes_from_params=shapes_from_params,
    checks=checks,
)
