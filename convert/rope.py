"""Rotary facts as a config tells them, old and new, and what is wrong with them. GGUF's spelling of them is rope_gguf.py's.

    config.json, transformers 4    rope_theta, rope_scaling {rope_type (or type), factor, ...}, rope_local_base_freq
    config.json, transformers 5    rope_parameters {rope_theta, rope_type, ...}, or one such set for each kind of layer

Canonical is the old spelling, which both generations of transformers read. Pair j of a head turns by position * f(j):

    default    f = theta^(-2j / head_dim)
    linear     f / factor
    dynamic    f of a larger theta, once a text is longer than max_position_embeddings; until then as default
    yarn       f / factor for slow pairs, f for fast ones, a ramp between; cos and sin times the attention factor
    longrope   f / short_factor[j], or / long_factor[j] in a text longer than the original context; the same for cos and sin
    llama3     f / factor for slow pairs, f for fast ones, otherwise blended

Sources: transformers (modeling_rope_utils.py); YaRN, arXiv 2309.00071; LongRoPE, arXiv 2402.13753.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError, quoted
from .architecture import FLOAT32_MAX, FLOAT32_MIN

SCALINGS = ("linear", "dynamic", "yarn", "longrope", "llama3")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_KEYS = ("factor", *LLAMA3)
FACTOR_LISTS = ("long_factor", "short_factor")  # longrope: a divisor for each pair
ORIGINAL = "original_max_position_embeddings"

_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}
_BESIDE = ("rope_theta", "partial_rotary_factor")  # of a model whatever its scaling
_WANTED = {"llama3": LLAMA3_KEYS, "longrope": ()}  # of all others the factor
_MAY = {
    "yarn": (ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": (ORIGINAL, "attention_factor", "factor"),
}


def flatten_rope(config: dict[str, Any], kinds: bool, where: str) -> dict[str, Any]:
    """`config` with `rope_parameters` told in the older keys. ModelError where the two spellings disagree.

    kinds  the family has a rotary base of its own for sliding layers
    """
    config = dict(config)
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        sets = rope if isinstance(rope, dict) and set(rope) == set(_KINDS) and kinds else {"full_attention": rope}
        for kind, one in sets.items():
            if not isinstance(one, dict) or any(isinstance(value, dict) for value in one.values()):
                raise ModelError(f"{where}: rope_parameters is {quoted(rope)}, wanted one set of them for all layers")
            _merge(config, _KINDS[kind], one.get("rope_theta"), where)
            if kind == "full_attention":
                if _type(one) not in (None, "default"):
                    config.setdefault("rope_scaling", one)
                config.setdefault("partial_rotary_factor", one.get("partial_rotary_factor"))
            elif _type(one) not in (None, "default"):
                raise ModelError(
                    f"{where}: rope_parameters of sliding layers are scaled: smelt does not know such a model"
                )
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        for key in _BESIDE:  # transformers 5 looks there first
            _merge(config, key, scaling.get(key), where)
        bare = {key: value for key, value in scaling.items() if key not in _BESIDE}
        config["rope_scaling"] = None if _type(scaling) == "default" else bare
    if config.get("partial_rotary_factor") is None:
        config.pop("partial_rotary_factor", None)
    return config


def _merge(config: dict[str, Any], key: str, value: Any, where: str) -> None:
    if value is None:
        return  # the class's own, if the config has none either
    if config.get(key) is None:
        config[key] = value
    elif value != config[key]:
        raise ModelError(f"{where}: {key} is {quoted(config[key])}, among the rotary parameters {quoted(value)}")


def _type(scaling: Mapping[str, Any]) -> Any:
    return scaling.get("rope_type", scaling.get("type"))


def scaling_type(config: Mapping[str, Any]) -> str | None:
    """The kind of rotary scaling that a config asks for, "unknown" where it does not say; None where it asks for none."""
    scaling = config.get("rope_scaling")
    if scaling is None:
        return None
    kind = _type(scaling) if isinstance(scaling, dict) else None
    return kind if isinstance(kind, str) else "unknown"


def rope_problems(config: Mapping[str, Any], *known: str) -> list[str]:
    """What a config says of rotary positions that is none of the `known` scalings, or incomplete, as sentences."""
    problems = []
    kind = scaling_type(config)
    if kind is not None and kind not in known:
        problems.append(f"rope_scaling {quoted(config['rope_scaling'])} is not supported by smelt yet")
    elif kind is not None:
        problems += _wrong_values(config, kind)
    if config.get("partial_rotary_factor", 1) != 1:
        problems.append(
            f"partial_rotary_factor {quoted(config['partial_rotary_factor'])} is not supported by smelt yet"
        )
    return problems


def _wrong_values(config: Mapping[str, Any], kind: str) -> list[str]:
    """Values of `rope_scaling` that are missing or no positive numbers."""
    scaling: Mapping[str, Any] = config["rope_scaling"]
    wrong = [key for key in _WANTED.get(kind, ("factor",)) if not is_number(scaling.get(key))]
    wrong += [key for key in _MAY.get(kind, ()) if scaling.get(key) is not None and not is_number(scaling[key])]
    wrong += [key for key in FACTOR_LISTS if kind == "longrope" and not _is_list(scaling.get(key), config)]
    problems = [f"rope_scaling: {key} is {quoted(scaling.get(key))}" for key in wrong]
    if kind in _MAY and original_context(config) is None:
        problems.append(f"rope_scaling: {ORIGINAL} is in none of its places")
    if kind == "llama3" and not wrong and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
        problems.append("rope_scaling: low_freq_factor is not below high_freq_factor")
    return problems


def is_number(value: object) -> bool:
    """True for a positive number that a float32 holds."""
    return type(value) in (int, float) and FLOAT32_MIN <= value <= FLOAT32_MAX  # type: ignore[operator]


def _is_list(values: object, config: Mapping[str, Any]) -> bool:
    """True for a divisor of each pair of a head."""
    pairs = config.get("head_dim", 0)
    return isinstance(values, list) and len(values) * 2 == pairs and all(is_number(value) for value in values)


def original_context(config: Mapping[str, Any]) -> int | None:
    """The context before it was stretched: beside rope_scaling, in it, or the context itself; None where none is a count."""
    for value in (config.get(ORIGINAL), config["rope_scaling"].get(ORIGINAL), config.get("max_position_embeddings")):
        if value is not None:
            return int(value) if is_number(value) and value > 1 and value == int(value) else None
    return None


def magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's attention factor of a context that is `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def attention_factor(config: Mapping[str, Any]) -> float:
    """What a yarn or longrope config multiplies cos and sin by; the config has no `rope_problems`."""
    scaling = config["rope_scaling"]
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    original, factor = original_context(config), scaling.get("factor")
    if scaling_type(config) == "yarn":
        weights = scaling.get("mscale"), scaling.get("mscale_all_dim")
        if all(weights):
            return magnitude(factor, weights[0]) / magnitude(factor, weights[1])
        return magnitude(factor)
    if original is None:
        return 1.0
    stretched = float(config.get("max_position_embeddings", original)) / original if factor is None else float(factor)
    return 1.0 if stretched <= 1 else math.sqrt(1 + math.log(stretched) / math.log(original))
