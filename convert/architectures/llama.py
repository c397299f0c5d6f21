"""LLaMA 1 to 3.3 and Code Llama (and every model of that shape): RMSNorm, rotary pairs, SwiGLU, grouped-query attention.

Meta rotates adjacent pairs (2j, 2j+1), Hugging Face rotates (j, j + head_dim/2); GGUF's `llama` does as Meta does. So
the rows of q_proj and k_proj (and the elements of their biases, which some models of that shape have) are reordered
between canonical and the other two (see layouts.py). Since Llama 3.1 low frequencies are slowed (see rope.py).

Sources: meta-llama/llama, llama3 and llama-models (model.py: ModelArgs, FeedForward, precompute_freqs_cis, apply_scaling),
the published params.json files, ggml-org/llama.cpp (gguf-py constants), transformers LlamaConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ...dtypes import Shape
from ...errors import ModelError, quoted
from ..architecture import Dialect, Fact, Family, Row, real_number, whole_number
from ..layouts import Layout, rotary
from ..rope import LLAMA3, SCALINGS, rope_problems
from ..rope_gguf import DIVISORS, LIKE_LLAMA, ROPE_SCALING, rope_gguf_problems
from ..rows import INV_FREQ, bias_row

_LAYER = "model.layers.{layer}."
_Q = ("q_rows", "hidden_size")
_KV = ("kv_rows", "hidden_size")
_Q_PAIRS, _K_PAIRS = rotary("num_attention_heads"), rotary("num_key_value_heads")
_Q_LAYOUTS: dict[Dialect, Layout] = {"meta": _Q_PAIRS, "gguf": _Q_PAIRS}
_K_LAYOUTS: dict[Dialect, Layout] = {"meta": _K_PAIRS, "gguf": _K_PAIRS}

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
        layouts=_Q_LAYOUTS,
    ),
    Row(
        "attn_k",
        _LAYER + "self_attn.k_proj.weight",
        "layers.{layer}.attention.wk.weight",
        "blk.{layer}.attn_k.weight",
        0,
        _KV,
        layouts=_K_LAYOUTS,
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

_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_gate", "ffn_up", "ffn_down")
BIASES = tuple(
    bias_row(row, when)
    for roles, when in ((_ATTENTION, "attention_bias"), (_MLP, "mlp_bias"))
    for row in ROWS
    if row.role in roles
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
    """What a published model's params.json leaves out, by what it says and the dtype it came in.

    rope_theta  10000 where params.json says none; scaling  Llama 3.1's factor, 0 without `use_scaled_rope`
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    rope_theta: float
    scaling: float
    dtype: str
    context: int
    name: str
    source: str
    tied: bool = False


ROPE_THETA = 10000.0  # meta-llama/llama model.py, precompute_freqs_cis: fixed for files whose params.json has no theta
SCALING = 8.0  # meta-llama/llama-models model.py, apply_scaling: fixed where params.json says use_scaled_rope

_LLAMA1 = "LLaMA paper (arXiv 2302.13971): trained at 2048 tokens, 32000 pieces, released in fp16"
_LLAMA2 = "Llama 2 paper (arXiv 2307.09288): trained at 4096 tokens, 32000 pieces, released in bf16"
_CODE = (
    "Code Llama paper (arXiv 2308.12950): fine-tuned at 16384 tokens with a base of 1e6; 16 more pieces for infilling"
)
_CODE70 = "meta-llama/codellama issue 188: the 70B Python and Instruct models are Llama 2's 4096 tokens and base of 1e4"
_LLAMA3 = "meta-llama/llama3 MODEL_CARD.md: 8192 tokens, 128256 pieces, base of 5e5"
_LLAMA31 = "Llama 3 paper (arXiv 2407.21783) and the model cards of 3.1 and 3.3: 131072 tokens"
_LLAMA32 = "model card of Llama 3.2 and its config.json: 131072 tokens, scaling factor 32, output tied to the embedding"

PUBLISHED = (
    Published(4096, 32, 32, 32, 32000, 1e4, 0, "F16", 2048, "LLaMA 7B", _LLAMA1),
    Published(5120, 40, 40, 40, 32000, 1e4, 0, "F16", 2048, "LLaMA 13B", _LLAMA1),
    Published(6656, 60, 52, 52, 32000, 1e4, 0, "F16", 2048, "LLaMA 30B", _LLAMA1),
    Published(8192, 80, 64, 64, 32000, 1e4, 0, "F16", 2048, "LLaMA 65B", _LLAMA1),
    Published(4096, 32, 32, 32, 32000, 1e4, 0, "BF16", 4096, "Llama 2 7B", _LLAMA2),
    Published(5120, 40, 40, 40, 32000, 1e4, 0, "BF16", 4096, "Llama 2 13B", _LLAMA2),
    Published(8192, 80, 64, 8, 32000, 1e4, 0, "BF16", 4096, "Llama 2 70B", _LLAMA2),
    Published(4096, 32, 32, 32, 32016, 1e6, 0, "BF16", 16384, "Code Llama 7B", _CODE),
    Published(4096, 32, 32, 32, 32000, 1e6, 0, "BF16", 16384, "Code Llama 7B Python", _CODE),
    Published(5120, 40, 40, 40, 32016, 1e6, 0, "BF16", 16384, "Code Llama 13B", _CODE),
    Published(5120, 40, 40, 40, 32000, 1e6, 0, "BF16", 16384, "Code Llama 13B Python", _CODE),
    Published(8192, 48, 64, 8, 32000, 1e6, 0, "BF16", 16384, "Code Llama 34B", _CODE),
    Published(8192, 80, 64, 8, 32016, 1e6, 0, "BF16", 16384, "Code Llama 70B", _CODE),
    Published(8192, 80, 64, 8, 32016, 1e4, 0, "BF16", 4096, "Code Llama 70B Python or Instruct", _CODE70),
    Published(4096, 32, 32, 8, 128256, 5e5, 0, "BF16", 8192, "Llama 3 8B", _LLAMA3),
    Published(8192, 80, 64, 8, 128256, 5e5, 0, "BF16", 8192, "Llama 3 70B", _LLAMA3),
    Published(4096, 32, 32, 8, 128256, 5e5, 8, "BF16", 131072, "Llama 3.1 8B", _LLAMA31),
    Published(8192, 80, 64, 8, 128256, 5e5, 8, "BF16", 131072, "Llama 3.1 or 3.3 70B", _LLAMA31),
    Published(16384, 126, 128, 8, 128256, 5e5, 8, "BF16", 131072, "Llama 3.1 405B", _LLAMA31),
    Published(16384, 126, 128, 16, 128256, 5e5, 8, "BF16", 131072, "Llama 3.1 405B, key-value heads twice", _LLAMA31),
    Published(2048, 16, 32, 8, 128256, 5e5, 32, "BF16", 131072, "Llama 3.2 1B", _LLAMA32, tied=True),
    Published(3072, 28, 24, 8, 128256, 5e5, 32, "BF16", 131072, "Llama 3.2 3B", _LLAMA32, tied=True),
)


def published(params: Mapping[str, Any], vocab: int | None, dtype: str | None) -> tuple[Published, ...]:
    """The rows that params.json may be of; `vocab` and `dtype` None where they are not known yet."""
    given = {key: value for key, value in params.items() if value is not None}
    shape = (
        given.get("dim"),
        given.get("n_layers"),
        given.get("n_heads"),
        given.get("n_kv_heads", given.get("n_heads")),
    )
    theta, scaled = given.get("rope_theta", ROPE_THETA), bool(given.get("use_scaled_rope"))
    return tuple(
        row
        for row in PUBLISHED
        if row[:4] == shape
        and (row.rope_theta, bool(row.scaling)) == (theta, scaled)
        and vocab in (None, row.vocab)
        and dtype in (None, row.dtype)
    )


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
    rows = published(params, config["vocab_size"], dtype)
    if params.get("use_scaled_rope"):
        alike = published(params, None, None)  # a longer vocabulary or another dtype slows no frequency otherwise
        factor = given.get("rope_scaling_factor", alike[0].scaling if alike else SCALING)
        factor = real_number(factor, "params.json: rope_scaling_factor")
        config["rope_scaling"] = {"rope_type": "llama3", "factor": factor, **LLAMA3}
    if rows and rows[0].tied:
        config["tie_word_embeddings"] = True
    context = given.get("max_seq_len", rows[0].context if rows else None)
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
    rows = published(params, vocab_size, None)
    if params.get("vocab_size") == -1:  # as LLaMA 1 and 2 have it; Code Llama's files leave the key out
        rows = tuple(row for row in rows if row.source in (_LLAMA1, _LLAMA2))
    if vocab_size is None and len({row.vocab for row in rows}) != 1:
        which = " or ".join(f"{row.vocab} ({row.name})" for row in rows)
        raise ModelError(
            "params.json leaves out the vocabulary, and its shape is "
            f"{f'of models with {which} pieces' if which else 'none of the published'}: say --vocab-size"
        )
    sizes = {
        "hidden_size": dim,
        "q_rows": dim,
        "kv_rows": dim // n_heads * n_kv_heads,
        "intermediate_size": feed_forward_width(params),
        "vocab_size": rows[0].vocab if vocab_size is None else vocab_size,
    }
    shapes = {
        row.meta.replace("{layer}", str(layer)): tuple(sizes[size] for size in row.shape)
        for row in ROWS
        if row.meta is not None
        for layer in range(n_layers if "{layer}" in row.meta else 1)
    }
    return shapes, rows[0].dtype if rows else "F16"


def checks(config: Mapping[str, Any]) -> list[str]:
    """What a `llama` config may not say, because the shared tables would get it wrong."""
    problems = []
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        problems.append(f"{heads} query heads do not divide among {kv_heads} key-value heads")
    problems += rope_problems(config, *SCALINGS)
    if config.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act {quoted(config['hidden_act'])} is not silu")
    return problems


FAMILY = Family(
    name="llama",
    model_type="llama",
    hugging_face_class="LlamaForCausalLM",
    gguf="llama",
    rows=(*ROWS, *BIASES),
    facts=FACTS,
    keys=(ROPE_SCALING,),
    derived=DIVISORS,
    drops=(r"rope\.freqs", INV_FREQ),
    constants={
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "pretraining_tp": 1,
        "use_cache": True,
        "rope_theta": ROPE_THETA,  # LlamaConfig before the key existed: conversions of 2023
        "rope_scaling": None,
    },
    in_gguf=lambda keys: keys.get("expert_count") in (None, 0),
    from_params=from_params,
    shapes_from_params=shapes_from_params,
    checks=checks,
    gguf_checks=lambda config: rope_gguf_problems(config, *LIKE_LLAMA),
)
