"""A LoRA adapter as the peft library saves it: adapter_config.json, and adapter_model.safetensors or .bin.

    base_model.model.<module>.lora_A.weight             [r, in]        with lora_B: the module's weight + s * (B @ A)
    base_model.model.<module>.lora_B.weight             [out, r]
    base_model.model.<module>.lora_B.bias               [out]          the module's bias + s * this
    base_model.model.<module>.lora_embedding_A | _B     [r, n] [d, r]  of an embedding, whose change is s * (B @ A)^T
    base_model.model.<module>.lora_magnitude_vector     [out]          DoRA: the length that each row is given
    base_model.model.<module>.weight | .bias            as the module  takes its place (modules_to_save, bias)

    s = alpha / r, or alpha / sqrt(r) with use_rslora; rank_pattern and alpha_pattern name modules with numbers of their own

Source: peft, tuners/lora (config.py, layer.py), utils/save_and_load.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.checkpoint import StoredTensor
from ..formats.pth import open_pth
from ..formats.safetensors import open_safetensors

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX = "base_model.model."
PART = re.compile(
    r"(?P<module>.+?)(?:\.base_layer)?\.(?:"
    r"(?P<lora>lora_[AB])(?:\.default)?\.(?P<which>weight|bias)"
    r"|(?P<embedding>lora_embedding_[AB])(?:\.default)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|(?:modules_to_save\.default\.)?(?P<whole>weight|bias))"
)
# What changes the sum: weights other than the base's, or changes that depend on the input.
REFUSED = ("layer_replication", "target_parameters", "alora_invocation_tokens", "trainable_token_indices", "use_qalora")
OWN_BASE = ("pissa", "olora", "corda")  # these take part of the base's weights into the adapter


@dataclass
class Change:
    """What an adapter does to one module. Tensors are as stored; `scale` multiplies B @ A."""

    scale: float = 0.0
    a: StoredTensor | None = None
    b: StoredTensor | None = None
    embedding_a: StoredTensor | None = None
    embedding_b: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    bias: StoredTensor | None = None


@dataclass(frozen=True)
class Adapter:
    """{module: what becomes of its weight and bias} and {canonical tensor name: what takes its place}."""

    path: Path
    changes: Mapping[str, Change]
    replacements: Mapping[str, StoredTensor] = field(default_factory=dict)


def read_adapter(folder: Path) -> Adapter:
    """Open an adapter's folder; headers only. ModelError lists every tensor without a meaning; FormatError for its files."""
    settings = _settings(folder / CONFIG)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise InputError(f"{folder}: holds neither {' nor '.join(WEIGHTS)}: is it the adapter's folder?")
    opened = open_safetensors(weights) if weights.suffix == ".safetensors" else open_pth(weights)
    changes: dict[str, Change] = {}
    replacements: dict[str, StoredTensor] = {}
    unknown = []
    for name, tensor in opened.tensors.items():
        match = PART.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        if match is None:
            unknown.append(name)
        elif match["whole"] is not None:
            replacements[f"{match['module']}.{match['whole']}"] = tensor
        elif not _place(changes.setdefault(match["module"], Change()), match, tensor):
            unknown.append(name)
    if unknown:
        listed = ", ".join(quoted(name) for name in sorted(unknown)[:8])
        raise ModelError(f"{weights}: {len(unknown)} tensors have no meaning in a LoRA adapter: {listed}")
    for module, change in changes.items():
        _complete(weights, module, change, settings)
    return Adapter(folder, changes, replacements)


def _settings(path: Path) -> dict[str, Any]:
    """adapter_config.json; ModelError for kinds of adapters that cannot be added to the base's weights."""
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: is missing: an adapter's rank and scale stand in it") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(settings, dict):
        raise FormatError(f"{path}: holds {type(settings).__name__}, wanted an object")
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {quoted(settings.get('peft_type'))}, smelt merges LORA adapters")
    refused = [key for key in REFUSED if settings.get(key)]
    if refused:
        raise ModelError(f"{path}: {refused[0]} is set: such an adapter is no sum with the base's weights")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(OWN_BASE):
        raise ModelError(
            f"{path}: init_lora_weights is {quoted(start)}: it belongs to a changed base; save it converted to plain LoRA"
        )
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = settings.get(key) or {}
        if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
            raise FormatError(f"{path}: {key} is {quoted(pattern)}, wanted numbers by module")
    if not _is_number(settings.get("lora_alpha")):
        raise FormatError(f"{path}: lora_alpha is {quoted(settings.get('lora_alpha'))}, wanted a number")
    return settings


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _place(change: Change, match: re.Match[str], tensor: StoredTensor) -> bool:
    """Put the tensor where it belongs; False where nothing is known of such a one."""
    if match["magnitude"]:
        change.magnitude = tensor
    elif match["embedding"]:
        setattr(change, "embedding_a" if match["embedding"].endswith("A") else "embedding_b", tensor)
    elif match["which"] == "bias":
        if match["lora"] == "lora_A":
            return False
        change.bias = tensor
    else:
        setattr(change, "a" if match["lora"] == "lora_A" else "b", tensor)
    return True


def _complete(path: Path, module: str, change: Change, settings: Mapping[str, Any]) -> None:
    """Both factors, of one rank, and their scale."""
    a, b = (change.embedding_a, change.embedding_b) if change.a is None else (change.a, change.b)
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        shapes = [None if part is None else list(part.shape) for part in (a, b)]
        raise ModelError(f"{path}: {module}: wanted factors [r, in] and [out, r], got {shapes[0]} and {shapes[1]}")
    if change.magnitude is not None and change.a is None:
        raise ModelError(f"{path}: {module}: DoRA of an embedding is not supported by smelt")
    rank = a.shape[0]
    said = _by_module(settings.get("rank_pattern") or {}, module)
    if said is not None and said != rank:
        raise ModelError(f"{path}: {module}: has rank {rank}, rank_pattern says {said}")
    alpha = _by_module(settings.get("alpha_pattern") or {}, module)
    alpha = float(settings["lora_alpha"] if alpha is None else alpha)
    change.scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def _by_module(pattern: Mapping[str, float], module: str) -> float | None:
    """The number of the first key that is a module's name, or a regular expression for its end; None without one."""
    for key, value in pattern.items():
        try:
            found = re.fullmatch(rf"(?:.*\.)?(?:{key})", module)
        except re.error:
            raise FormatError(f"{CONFIG}: {quoted(key)} is no regular expression") from None
        if found is not None:
            return value
    return None
