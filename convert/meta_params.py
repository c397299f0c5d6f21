"""params.json out of a canonical config, and what travels beside it because params.json has no key for it.

    params.json         dim, n_layers, n_heads, ...: what Meta's own ModelArgs takes; other keys would make it fail
    smelt.config.json   beside it: the whole canonical config, which Hugging Face files lie in the folder byte for byte, and
                        what the source had kept under smelt.*
    smelt.meta          in the other formats: params.json's text, the number of shards, the dimension that divides the embedding

    feed-forward width = multiple_of * ceil(m / multiple_of),  m = int(ffn_dim_multiplier * int(2 * (4 * dim) / 3))

Reading, params.json has the last word on what it says; the config beside it tells the rest.
Source: meta-llama/llama and llama3 (model.py, ModelArgs, FeedForward), the published params.json files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FormatError, ModelError, quoted
from .made_files import MADE
from .model import Config, Model
from .rope import LLAMA3, scaling_type
from .side_files import read_side_files
from .tokenizer import MODEL_FILE, SENTENCEPIECE

ORIGIN = "smelt.meta"
BESIDE = "smelt.config.json"
# what params.json says itself, so that a config beside it is not asked
SAID = frozenset(
    (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "rope_theta",
        "vocab_size",
    )
)
# (dim, feed-forward width): (multiple_of, ffn_dim_multiplier) of the published files; 256 and none of all others
WIDTHS: dict[tuple[int, int], tuple[int, float | None]] = {
    (8192, 28672): (4096, 1.3),
    (4096, 14336): (1024, 1.3),
    (16384, 53248): (4096, 1.2),
    (2048, 8192): (256, 1.5),
    (3072, 8192): (256, 1.0),
}
# (dim, n_layers): shards as published
SHARDS = {(5120, 40): 2, (6656, 60): 4, (8192, 80): 8, (8192, 48): 4, (16384, 126): 8}
LLAMA3_ROPE_THETA = 500000.0


@dataclass(frozen=True)
class MetaOrigin:
    """How a Meta folder was written: params.json's text, the number of shards, the dimension that divides the embedding."""

    params: str
    n_shards: int
    embedding_split: int

    def kept(self) -> dict[str, str]:
        """What another format carries for the way back."""
        return {ORIGIN: json.dumps(vars(self), sort_keys=True)}


def origin_of(model: Model) -> MetaOrigin | None:
    """What `kept` said in the file the model came from; None where it says nothing that makes sense."""
    try:
        said = json.loads(model.kept.get(ORIGIN, "null"))
    except (ValueError, RecursionError):
        return None
    wanted = {"params": str, "n_shards": int, "embedding_split": int}
    if not isinstance(said, dict) or {key: type(value) for key, value in said.items()} != wanted:
        return None
    return MetaOrigin(**said) if said["embedding_split"] in (0, 1) and 0 < said["n_shards"] <= 100 else None


def published_shards(model: Model) -> int:
    """As many shards as the model has, or had when it was last a Meta folder, else as its shape was published in, else one."""
    if model.source == "meta":
        return sum(path.suffix == ".pth" for path in model.files)
    origin = origin_of(model)
    if origin is not None:
        return origin.n_shards
    return SHARDS.get((model.config["hidden_size"], model.config["num_hidden_layers"]), 1)


def embedding_split(model: Model) -> int:
    """The dimension that divides the embedding: columns in LLaMA 1 and 2, rows since Llama 3 (tiktoken, theta 500000)."""
    origin = origin_of(model)
    if origin is not None:
        return origin.embedding_split
    if model.tokenizer is not None:
        return 1 if model.tokenizer.kind == SENTENCEPIECE else 0
    return 0 if model.config["rope_theta"] == LLAMA3_ROPE_THETA else 1


def params_json(model: Model, n_stored_kv_heads: int) -> bytes:
    """params.json: as it was where its facts are still the model's, else in Meta's keys. ModelError where it cannot say it."""
    config = model.config
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise ModelError(
            f"{model.files[0]}: {config['num_attention_heads']} heads of {config['head_dim']} are not {config['hidden_size']} "
            "wide: params.json has no key for such a head, choose --to safetensors or gguf"
        )
    if (problem := _unsaid_rope(config)) is not None:
        raise ModelError(f"{model.files[0]}: {problem}: params.json cannot say so, choose --to safetensors or gguf")
    fresh = _params(config, n_stored_kv_heads)
    origin = origin_of(model)
    before = None if origin is None else parse_params(origin.params)
    if origin is None or before is None or not all(_alike(key, before.get(key), fresh) for key in {*fresh, *before}):
        return (json.dumps(fresh) + "\n").encode()
    if (before.get("n_kv_heads") or fresh["n_heads"]) == n_stored_kv_heads:
        return origin.params.encode()
    end = "\n" if origin.params.endswith("\n") else ""
    return (json.dumps({**before, "n_kv_heads": n_stored_kv_heads}) + end).encode()


def _unsaid_rope(config: Config) -> str | None:
    """Rotary scaling that `use_scaled_rope` does not mean; of Llama 3's, Meta's code knows one set of parameters."""
    kind, scaling = scaling_type(config), config.get("rope_scaling")
    alike = isinstance(scaling, dict) and all(scaling.get(key) == LLAMA3[key] for key in LLAMA3)
    if kind is None or (kind == "llama3" and alike):
        return None
    return f"rope_scaling is {quoted(scaling)}"


def parse_params(text: str | bytes) -> dict[str, Any] | None:
    """params.json's object, out of the `model` that some wrappers nest it in; None where it is none."""
    try:
        params = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(params, dict) and isinstance(params.get("model"), dict):
        params = params["model"]
    return params if isinstance(params, dict) else None


def _alike(key: str, before: Any, fresh: Mapping[str, Any]) -> bool:
    """Whether an original value says what the model's says; keys that Meta leaves out mean its own defaults."""
    absent = {"rope_theta": 10000.0, "use_scaled_rope": False}
    if key in ("multiple_of", "ffn_dim_multiplier", "max_seq_len", "n_kv_heads"):
        return True  # the width and the context are told by the shapes and beside; the heads are set anew
    if key == "vocab_size":
        return before in (None, -1, fresh[key])
    if key not in fresh and key not in absent:
        return True  # a key of later releases; its text is kept
    return bool((absent.get(key) if before is None else before) == fresh.get(key, absent.get(key)))


def _params(config: Config, n_stored_kv_heads: int) -> dict[str, Any]:
    dim, n_heads, width = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    multiple_of, multiplier = _width_rule(dim, width)
    params: dict[str, Any] = {"dim": dim, "multiple_of": multiple_of}
    params |= {} if multiplier is None else {"ffn_dim_multiplier": multiplier}
    params |= {"n_heads": n_heads}
    params |= {} if n_stored_kv_heads == n_heads else {"n_kv_heads": n_stored_kv_heads}
    params |= {"n_layers": config["num_hidden_layers"], "norm_eps": config["rms_norm_eps"]}
    params |= {} if config["rope_theta"] == 10000.0 else {"rope_theta": config["rope_theta"]}
    params |= {"use_scaled_rope": True} if scaling_type(config) == "llama3" else {}
    return params | {"vocab_size": config["vocab_size"]}


def _width_rule(dim: int, width: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) that give `width`: the published pair, else the roundest that does."""
    candidates: list[tuple[int, float | None]] = [(256, None)]
    candidates += [WIDTHS[dim, width]] if (dim, width) in WIDTHS else []
    candidates += [(1 << power, None) for power in range(12, 4, -1)]
    base = int(2 * (4 * dim) / 3)
    largest = width & -width  # the largest power of two that divides it
    candidates += [(largest, round(width / base, digits)) for digits in range(1, 17)]
    for multiple_of, multiplier in candidates:
        wanted = base if multiplier is None else int(multiplier * base)
        if multiple_of * -(-wanted // multiple_of) == width:
            return multiple_of, multiplier
    return width, min(1.0, (width - 0.5) / base)


def config_beside(model: Model, side_files: Iterable[str], made: Mapping[str, str] | None = None) -> bytes:
    """smelt.config.json of a folder that holds `model` and the files of these names; `made` is made_files' word."""
    document = {"config": model.config, "kept": dict(model.kept), "side_files": sorted(side_files), **(made or {})}
    return (json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@dataclass(frozen=True)
class Beside:
    """What smelt.config.json says; `kept` is None where there is no such file. `listed`: side files by its word alone.

    made  which files beside the weights smelt made itself, for `without_made`
    """

    config: Config
    side_files: dict[str, bytes]
    kept: dict[str, str] | None
    listed: tuple[str, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)


def read_beside(folder: Path, known: tuple[str, ...]) -> Beside:
    """smelt.config.json, and of the files that it lists those that are `known`. FormatError where it is malformed.

    Without it the Hugging Face files that lie there all the same; tokenizer.model alone is Meta's own.
    """
    path = folder / BESIDE
    if not path.is_file():
        found = read_side_files(folder, known)
        return Beside({}, found if set(found) - {MODEL_FILE} else {}, None)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    told = content if isinstance(content, dict) else {}
    config, names, kept = told.get("config"), told.get("side_files"), told.get("kept")
    if not isinstance(config, dict) or not isinstance(names, list) or not isinstance(kept, dict):
        raise FormatError(
            f"{path}: wanted an object with config, side_files and kept: remove it to read params.json alone"
        )
    listed = tuple(name for name in known if name in names)
    kept = {key: text for key, text in kept.items() if key == ORIGIN and type(text) is str}
    made = {MADE: told[MADE]} if type(told.get(MADE)) is str else {}
    return Beside(config, read_side_files(folder, listed), kept, listed, made)
