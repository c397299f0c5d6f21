"""Questions that several families ask of a config before anything is converted. Answers are sentences; none is a yes.

What a config.json leaves out is what its class in transformers says, so a family states those values (`class_defaults`)
instead of guessing: the size of a head is not always hidden_size / heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import quoted

Config = Mapping[str, Any]


def class_defaults(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """config.json -> the same with `values` where it does not have the key; an explicit null stays null."""
    return lambda config: {**values, **config}


def head_problems(config: Config) -> list[str]:
    """Query heads that do not divide among the key-value heads."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    if heads % kv_heads:
        return [f"{heads} query heads do not divide among {kv_heads} key-value heads"]
    return []


def value_problems(config: Config, key: str, *known: Any) -> list[str]:
    """A value of `key`, where there is one, that is none of the `known`."""
    value = config.get(key)
    if value is None or any(type(value) is type(one) and value == one for one in known):
        return []
    return [f"{key} {quoted(value)} is not {' or '.join(str(one) for one in known)}"]


def window_problems(config: Config) -> list[str]:
    """A sliding window that full attention, which is all that GGUF's clients have for the family, would not keep."""
    window, context = config.get("sliding_window"), config.get("max_position_embeddings")
    if window is None or context is None or context <= window:
        return []
    return [
        f"sliding_window is {quoted(window)} and the context {context} tokens, yet llama.cpp attends to all of them: "
        f"--context-length {window} keeps to what both compute alike"
    ]


def pattern_problems(config: Config, period: int) -> list[str]:
    """Kinds of layers other than `period` - 1 sliding ones and a full one, again and again."""
    problems = value_problems(config, "sliding_window_pattern", period)
    kinds = config.get("layer_types")
    if kinds is None:
        return problems
    wanted = layer_kinds(int(config["num_hidden_layers"]), period)
    if not isinstance(kinds, Sequence) or list(kinds) != wanted:
        problems.append(f"layer_types are not {period - 1} sliding and one full, as llama.cpp computes them")
    return problems


def layer_kinds(n_layers: int, period: int) -> list[str]:
    """The attention of each layer: every `period`-th is full."""
    return ["full_attention" if (layer + 1) % period == 0 else "sliding_attention" for layer in range(n_layers)]
