"""OPT: learned positions, LayerNorm and biases everywhere, ReLU, a tied head; OPT-350M normalises after, not before.

    OPT-350M   embedding [V, E] -> project_in [d, E] -> layers -> project_out [E, d] -> the embedding as head;  E < d

The table of positions has two rows more than there are positions: token t of a text takes row t + 2. llama.cpp has no OPT,
so a GGUF file under the architecture `opt` is for smelt alone:

    position_embd.weight  project_in.weight  project_out.weight      the rest as other decoders' tensors are named
    opt.word_embedding_length      E, the width of the embedding
    opt.norm_before                the norms come before attention and feed-forward
    opt.remove_final_norm          there is none after the last layer, although the others come before
    opt.activation                 of the feed-forward: relu, gelu
    opt.attention.layer_norm_epsilon   1e-5, which OPT's code fixes

Galactica is of this class, without biases and with norms that hold no weights.
Sources: transformers OPTConfig and modeling_opt.py; facebookresearch/metaseq.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...errors import quoted
from ..architecture import Fact, Family, Keys, Row
from ..checks import head_problems, value_problems
from ..rows import BLOCK, bias_row

POSITION_OFFSET = 2  # rows before that of the first position; metaseq counts its padding id 1 among them
EPSILON = 1e-5

_DECODER = "model.decoder."
_LAYER = _DECODER + "layers.{layer}."
_NORMS = "layer_norm_elementwise_affine"
_FLAGS = {"norm_before": "do_layer_norm_before", "remove_final_norm": "_remove_final_layer_norm"}


def _layer_rows(role: str, module: str, when: str, *shape: str) -> tuple[Row, Row]:
    """Weight and bias of a module of every layer; the norms' are there both or neither."""
    row = Row(role, f"{_LAYER}{module}.weight", None, f"{BLOCK}{role}.weight", None, shape)
    return (replace(row, when=_NORMS) if when == _NORMS else row), bias_row(row, when)


def _is_projected(config: Mapping[str, Any]) -> bool:
    return bool(config["word_embed_proj_dim"] != config["hidden_size"])


def _has_final_norm(config: Mapping[str, Any]) -> bool:
    before, removed = config.get("do_layer_norm_before"), config.get("_remove_final_layer_norm")
    return bool(config.get(_NORMS) and before and not removed)


def _row(role: str, name: str, *shape: str, when: Callable[[Mapping[str, Any]], bool] | None = None) -> Row:
    return Row(role, f"{_DECODER}{name}.weight", None, f"{role}.weight", None, shape, when=when)


_FINAL_NORM = _row("output_norm", "final_layer_norm", "hidden_size", when=_has_final_norm)


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Rows of the table of positions."""
    return {"position_rows": int(config.get("max_position_embeddings") or 0) + POSITION_OFFSET}


def from_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with what OPTConfig says where it says nothing."""
    width = config.get("word_embed_proj_dim")
    embedding = {"word_embed_proj_dim": config.get("hidden_size") if width is None else width}
    return {"max_position_embeddings": 2048, "tie_word_embeddings": True, **config, **embedding}


def to_gguf(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    """What is neither a count nor a measure of the config."""
    found: dict[str, int | float | str] = {"attention.layer_norm_epsilon": EPSILON}
    found |= {key: bool(config[name]) for key, name in _FLAGS.items() if name in config}
    if "activation_function" in config:
        found["activation"] = str(config["activation_function"])
    return found


def to_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The same back; an epsilon of another size goes along, to be refused."""
    names = {**_FLAGS, "activation": "activation_function"}
    found = {name: keys[key] for key, name in names.items() if key in keys}
    epsilon = keys.get("attention.layer_norm_epsilon", EPSILON)
    return found if epsilon == EPSILON else {**found, "layer_norm_epsilon": epsilon}


def checks(config: Mapping[str, Any]) -> list[str]:
    """Values that OPT's code does not know."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    problems = head_problems(config)
    if width % heads:
        problems.append(f"hidden_size {width} does not divide by {heads} heads")
    problems += value_problems(config, "num_key_value_heads", heads)
    problems += value_problems(config, "head_dim", width // heads)
    problems += value_problems(config, "layer_norm_epsilon", EPSILON)
    for key in (*_FLAGS.values(), "enable_bias", _NORMS):
        problems += value_problems(config, key, True, False)
    if not isinstance(config["activation_function"], str):
        problems.append(f"activation_function {quoted(config['activation_function'])} is no name")
    return problems


FAMILY = Family(
    name="opt",
    model_type="opt",
    hugging_face_class="OPTForCausalLM",
    gguf="opt",
    gguf_note="llama.cpp has no OPT: only smelt reads this file",
    prefix="model.",
    rows=(
        _row("token_embd", "embed_tokens", "vocab_size", "word_embed_proj_dim"),
        _row("position_embd", "embed_positions", "position_rows", "hidden_size"),
        _row("project_in", "project_in", "hidden_size", "word_embed_proj_dim", when=_is_projected),
        *_layer_rows("attn_norm", "self_attn_layer_norm", _NORMS, "hidden_size"),
        *_layer_rows("attn_q", "self_attn.q_proj", "enable_bias", "hidden_size", "hidden_size"),
        *_layer_rows("attn_k", "self_attn.k_proj", "enable_bias", "hidden_size", "hidden_size"),
        *_layer_rows("attn_v", "self_attn.v_proj", "enable_bias", "hidden_size", "hidden_size"),
        *_layer_rows("attn_output", "self_attn.out_proj", "enable_bias", "hidden_size", "hidden_size"),
        *_layer_rows("ffn_norm", "final_layer_norm", _NORMS, "hidden_size"),
        *_layer_rows("ffn_up", "fc1", "enable_bias", "ffn_dim", "hidden_size"),
        *_layer_rows("ffn_down", "fc2", "enable_bias", "hidden_size", "ffn_dim"),
        _FINAL_NORM,
        replace(bias_row(_FINAL_NORM), when=_has_final_norm),
        _row("project_out", "project_out", "word_embed_proj_dim", "hidden_size", when=_is_projected),
        Row(
            "output",
            "lm_head.weight",
            None,
            "output.weight",
            None,
            ("vocab_size", "word_embed_proj_dim"),
            required=False,
        ),
    ),
    facts=(
        Fact("max_position_embeddings", "context_length", "u32"),
        Fact("hidden_size", "embedding_length", "u32"),
        Fact("word_embed_proj_dim", "word_embedding_length", "u32"),
        Fact("num_hidden_layers", "block_count", "u32"),
        Fact("ffn_dim", "feed_forward_length", "u32"),
        Fact("num_attention_heads", "attention.head_count", "u32"),
        Fact("num_key_value_heads", "attention.head_count_kv", "u32", required=False),
    ),
    keys=(Keys(("attention.layer_norm_epsilon", *_FLAGS, "activation"), to_gguf, to_config),),
    drops=(r"model\.decoder\.version",),
    constants={
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        _NORMS: True,
    },
    sizes=sizes,
    from_config=from_config,
    checks=checks,
)
