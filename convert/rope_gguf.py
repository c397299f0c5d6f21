"""Rotary scaling under GGUF's keys, and the tensors that hold a divisor for each pair's frequency.

    linear     rope.scaling.type, .factor
    yarn       rope.scaling.type, .factor, .original_context_length, .attn_factor, .yarn_beta_fast, .yarn_beta_slow
    longrope   rope.scaling.type, .original_context_length, .attn_factor; rope_factors_{long,short}.weight
    llama3     rope_freqs.weight
    dynamic    has no key: `smelt.config` alone carries it (see `rope_notes`)

llama.cpp multiplies cos and sin by rope.scaling.attn_factor, with yarn by magnitude(factor) besides: the key holds the
quotient of the two, and is left out where that is 1. Its converter writes the whole factor as yarn_attn_factor, which its
loader passes over in these families, as it does the betas: others than YaRN's 32 and 1 are refused.

Llama 3 slows pair j, whose wavelength is w = 2 pi theta^(2j / head_dim), by a divisor:

    w < original / high: 1      w > original / low: factor      between: 1 / ((1 - s) / factor + s)
    s = (original / w - low) / (high - low)

Sources: meta-llama/llama-models (model.py, apply_scaling); llama.cpp (convert_hf_to_gguf.py, llama-model.cpp,
llama-context.cpp); every line checked by logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import ModelError, quoted
from ..kernels.scheme import Rows
from .architecture import Derived, Keys
from .rope import (
    FACTOR_LISTS,
    LLAMA3,
    LLAMA3_KEYS,
    ORIGINAL,
    SCALINGS,
    attention_factor,
    magnitude,
    original_context,
    rope_problems,
    scaling_type,
)

LIKE_LLAMA = SCALINGS  # what llama.cpp computes in the architecture `llama`
LIKE_QWEN = ("linear", "dynamic", "yarn")  # ... and in those that read no divisors

_TYPE, _FACTOR, _ORIGINAL = "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"
_ATTENTION, _WHOLE_ATTENTION = "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"
_BETAS = {"beta_fast": ("rope.scaling.yarn_beta_fast", 32.0), "beta_slow": ("rope.scaling.yarn_beta_slow", 1.0)}


def _to_gguf(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    kind = scaling_type(config)
    if kind not in ("linear", "yarn", "longrope") or rope_problems(config, *SCALINGS):
        return {}
    scaling: Mapping[str, Any] = config["rope_scaling"]
    found: dict[str, int | float | str] = {_TYPE: kind}
    if kind != "longrope":
        found[_FACTOR] = float(scaling["factor"])
    if kind == "linear":
        return found
    found[_ORIGINAL] = int(original_context(config) or 0)
    said = attention_factor(config)
    own = said / magnitude(float(scaling["factor"])) if kind == "yarn" else said
    if np.float32(own) != 1:
        found[_ATTENTION] = own
    if kind == "yarn":
        found |= {key: float(scaling[name]) for name, (key, _) in _BETAS.items() if scaling.get(name) is not None}
    return found


def _to_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    kind = keys.get(_TYPE, "linear")  # llama.cpp's own default for a file with a factor alone
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ModelError(f"{_TYPE} is {quoted(kind)}: smelt does not support it yet")
    odd = next((key for key in keys if key != _TYPE and type(keys[key]) not in (int, float)), None)
    if odd is not None:
        raise ModelError(f"{odd} is {quoted(keys[odd])}, wanted a number")
    factor = keys.get(_FACTOR) or keys.get("rope.scale_linear")
    scaled = kind == "longrope" or (kind != "none" and factor not in (None, 0, 1))
    if keys.get(_ATTENTION) not in (None, 0, 1) and not (scaled and kind != "linear"):
        raise ModelError(
            f"{_ATTENTION} is {quoted(keys[_ATTENTION])} without yarn or longrope: smelt knows no such model"
        )
    if not scaled:
        return {"rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": kind}
    if kind != "longrope":
        scaling["factor"] = factor
    if kind != "linear":
        scaling |= {ORIGINAL: keys[_ORIGINAL]} if _ORIGINAL in keys else {}
        scaling |= _attention_of(kind, keys, factor)
    scaling |= {name: keys[key] for name, (key, _) in _BETAS.items() if kind == "yarn" and key in keys}
    return {"rope_scaling": scaling}


def _attention_of(kind: str, keys: Mapping[str, Any], factor: Any) -> dict[str, float]:
    """The attention factor of a config; absent where YaRN's own is meant. Longrope's default differs, so it is always said."""
    own = keys.get(_ATTENTION)
    if kind == "longrope":
        return {"attention_factor": float(own or 1)}
    if own is not None:
        return {"attention_factor": float(own) * magnitude(float(factor))}
    whole = keys.get(_WHOLE_ATTENTION)
    return {} if whole is None else {"attention_factor": float(whole)}


ROPE_SCALING = Keys(
    (
        *(_TYPE, _FACTOR, "rope.scale_linear", _ORIGINAL, _ATTENTION, _WHOLE_ATTENTION),
        *(key for key, _ in _BETAS.values()),
    ),
    _to_gguf,
    _to_config,
)


def rope_gguf_problems(config: Mapping[str, Any], *known: str) -> list[str]:
    """Scaling that llama.cpp does not compute as the config says; `known` are the kinds that it has for the family."""
    kind, scaling = scaling_type(config), config.get("rope_scaling") or {}
    if kind is not None and kind not in known:
        return [f"rope_scaling is {kind}, which llama.cpp does not compute in this family"]
    problems = []
    if kind == "yarn":
        problems = [
            f"rope_scaling: {name} is {quoted(scaling[name])}, llama.cpp computes yarn with {default:g}"
            for name, (_, default) in _BETAS.items()
            if scaling.get(name) not in (None, default)
        ]
        if scaling.get("truncate", True) is not True:
            problems.append("rope_scaling: truncate is false, llama.cpp always rounds the ends of yarn's ramp")
    return problems


def rope_notes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What is worth a line about the rotary scaling of a GGUF file."""
    if scaling_type(config) != "dynamic":
        return ()
    return (
        f"GGUF has no key for dynamic rope_scaling: llama.cpp computes the same up to {config['max_position_embeddings']} "
        "tokens and does not stretch beyond them; smelt.config keeps it for the way back",
    )


def llama3_divisors(config: Mapping[str, Any]) -> Rows | None:
    """float32[head_dim / 2], by which llama.cpp divides each pair's frequency; None without llama3 scaling."""
    if scaling_type(config) != "llama3":
        return None
    factor, low, high, original = (float(config["rope_scaling"][key]) for key in LLAMA3_KEYS)
    head_dim, theta = int(config["head_dim"]), float(config["rope_theta"])
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _llama3_of(divisors: Rows, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling that a file's divisors are of, the largest being the factor itself; the rest is as Meta published it."""
    factor = float(divisors.max(initial=1))
    if factor == 1 or facts.get("rope_scaling") is not None:
        return {}
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}


def _divisors(name: str) -> Callable[[Mapping[str, Any]], Rows | None]:
    def of(config: Mapping[str, Any]) -> Rows | None:
        if scaling_type(config) != "longrope":
            return None
        return np.array(config["rope_scaling"][name], np.float32)

    return of


def _divisors_of(name: str) -> Callable[[Rows, Mapping[str, Any]], dict[str, Any]]:
    def to_config(divisors: Rows, facts: Mapping[str, Any]) -> dict[str, Any]:
        scaling = facts.get("rope_scaling")
        if scaling_type(facts) != "longrope" or scaling is None or name in scaling:
            return {}
        return {"rope_scaling": {**scaling, name: [float(str(value)) for value in divisors.ravel()]}}

    return to_config


ROPE_FREQS = Derived("rope_freqs.weight", "Llama 3's rotary scaling", llama3_divisors, _llama3_of)
DIVISORS = (
    ROPE_FREQS,
    *(
        Derived(
            f"rope_factors_{name.removesuffix('_factor')}.weight",
            f"longrope's {name}",
            _divisors(name),
            _divisors_of(name),
        )
        for name in FACTOR_LISTS
    ),
)
