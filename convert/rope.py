"""Rotary facts in every spelling: config.json old and new, GGUF's keys, and the tensor that holds Llama 3's scaling.

    config.json, transformers 4    rope_theta, rope_scaling {rope_type (or type), factor, ...}, rope_local_base_freq
    config.json, transformers 5    rope_parameters {rope_theta, rope_type, ...}, or one such set for each kind of layer
    GGUF                           rope.freq_base, rope.scaling.type + .factor for linear; rope_freqs.weight for llama3

Llama 3 slows pair j, whose wavelength is w = 2 pi theta^(2j / head_dim), by a divisor:

    w < original / high: 1      w > original / low: factor      between: 1 / ((1 - s) / factor + s)
    s = (original / w - low) / (high - low)

Canonical is the old spelling, which both generations of transformers read. Sources: meta-llama/llama-models (model.py,
apply_scaling), transformers (modeling_rope_utils.py), llama.cpp (convert_hf_to_gguf.py, llama-model.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ModelError, quoted
from ..kernels.scheme import Rows
from .architecture import Derived, Keys

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3_KEYS = ("factor", *LLAMA3)
_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}


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
                config.setdefault("partial_rotary_factor", one.get("partial_rotary_factor"))
                if _type(one) not in (None, "default"):
                    config.setdefault("rope_scaling", {key: value for key, value in one.items() if key != "rope_theta"})
            elif _type(one) not in (None, "default"):
                raise ModelError(
                    f"{where}: rope_parameters of sliding layers are scaled: smelt does not know such a model"
                )
    if config.get("partial_rotary_factor") is None:
        config.pop("partial_rotary_factor", None)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and _type(scaling) == "default":
        config["rope_scaling"] = None
    return config


def _merge(config: dict[str, Any], key: str, value: Any, where: str) -> None:
    if config.get(key) is None:
        config[key] = value
    elif value not in (None, config[key]):
        raise ModelError(f"{where}: {key} is {quoted(config[key])}, in rope_parameters {quoted(value)}")


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
        scaling: Mapping[str, Any] = config["rope_scaling"]
        wanted = LLAMA3_KEYS if kind == "llama3" else ("factor",)
        wrong = [key for key in wanted if not _number(scaling.get(key))]
        problems += [f"rope_scaling: {key} is {quoted(scaling.get(key))}" for key in wrong]
        if kind == "llama3" and not wrong and scaling["low_freq_factor"] >= scaling["high_freq_factor"]:
            problems.append("rope_scaling: low_freq_factor is not below high_freq_factor")
    if config.get("partial_rotary_factor", 1) != 1:
        problems.append(
            f"partial_rotary_factor {quoted(config['partial_rotary_factor'])} is not supported by smelt yet"
        )
    return problems


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _linear_to_gguf(config: Mapping[str, Any]) -> dict[str, int | float | str]:
    if scaling_type(config) != "linear" or not _number(config["rope_scaling"].get("factor")):
        return {}
    return {"rope.scaling.type": "linear", "rope.scaling.factor": float(config["rope_scaling"]["factor"])}


def _linear_to_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    kind = keys.get("rope.scaling.type", "linear")  # llama.cpp's own default for a file with a factor alone
    if kind not in ("linear", "none"):
        raise ModelError(f"rope.scaling.type is {quoted(kind)}: smelt does not support it yet")
    factor = keys.get("rope.scaling.factor") or keys.get("rope.scale_linear")
    if kind == "none" or factor in (None, 0, 1):
        return {"rope_scaling": None}
    return {"rope_scaling": {"rope_type": "linear", "factor": factor}}


LINEAR_SCALING = Keys(
    ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"), _linear_to_gguf, _linear_to_config
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


def _llama3_of(divisors: Rows) -> dict[str, Any]:
    """The scaling that a file's divisors are of, the largest being the factor itself; the rest is as Meta published it."""
    factor = float(divisors.max(initial=1))
    if factor == 1:
        return {}
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **LLAMA3}}


ROPE_FREQS = Derived("rope_freqs.weight", llama3_divisors, _llama3_of)
