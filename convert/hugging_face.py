"""A Hugging Face folder <-> Model: safetensors (single or with an index), config.json, tokenizer files.

    model.safetensors | model-0000N-of-0000K.safetensors + model.safetensors.index.json
    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json  tokenizer.model

Canonical names and layouts are Hugging Face's, so tensors pass through as they are. What transformers 5 spells anew
(`rope_parameters`, `dtype`) is read in both spellings and written in the old one, which both generations open.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..dtypes import DType
from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.checkpoint import FileLayout, TensorSpec, literal
from ..formats.safetensors import index_json, open_safetensors, safetensors_layout, shard_plan
from .architecture import family_by
from .assemble import assemble, canonical_config, resolve_head
from .meta import lazy
from .model import Config, Model
from .options import OpenOptions
from .tokenizer import Tokenizer, open_sentencepiece
from .tokenizer_folder import read_hugging_face
from .tokenizer_json import hugging_face_files

SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
)
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_hugging_face_model(path: Path, options: OpenOptions) -> Model:
    """Open a folder, or a .safetensors file with its config.json beside it. Reads headers and JSON only."""
    folder = path if path.is_dir() else path.parent
    checkpoint = open_safetensors(path)
    config_path = folder / "config.json"
    raw = read_json(config_path)
    if raw.get("quantization_config") is not None:
        method = raw["quantization_config"].get("quant_method") if isinstance(raw["quantization_config"], dict) else "?"
        raise ModelError(f"{config_path}: the weights are quantized ({method}): smelt does not read this dialect yet")
    family = family_by("model_type", str(raw.get("model_type")), str(config_path))
    config = canonical_config(family, _portable(raw, options, str(config_path)), str(config_path))
    stored = {name: lazy(tensor) for name, tensor in checkpoint.tensors.items()}
    tensors, names = assemble(family, "canonical", stored, config, str(path))
    assumptions = resolve_head(tensors, config, str(config_path), absent_means_tied=False)
    return Model(
        family.name,
        config,
        _tokenizer(folder, config, options),
        tensors,
        source="safetensors",
        files=checkpoint.files,
        stored_names=names,
        norm_dtype=next(tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 1),
        side_files=_side_files(folder, options),
        assumptions=assumptions,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that must be there; FormatError for anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing: without it the weights have no meaning; download it with the model"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: holds {type(content).__name__}, wanted an object")
    return content


def _portable(raw: Mapping[str, Any], options: OpenOptions, where: str) -> dict[str, Any]:
    """The config in transformers' older spelling, options applied."""
    config = dict(raw)
    rope = config.pop("rope_parameters", None)
    if rope is not None:
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            raise ModelError(f"{where}: rope_parameters is {quoted(rope)}, wanted one set of them for all layers")
        base = rope.get("rope_theta")
        if config.get("rope_theta") is None:
            config["rope_theta"] = base
        elif base not in (None, config["rope_theta"]):
            raise ModelError(
                f"{where}: rope_theta is {quoted(config['rope_theta'])}, in rope_parameters {quoted(base)}"
            )
        config.setdefault("partial_rotary_factor", rope.get("partial_rotary_factor"))
        if rope.get("rope_type", "default") != "default":
            config.setdefault("rope_scaling", {key: value for key, value in rope.items() if key != "rope_theta"})
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("rope_type", scaling.get("type")) == "default":
        config["rope_scaling"] = None
    config.pop("dtype", None)
    config.pop("torch_dtype", None)
    config.pop("transformers_version", None)
    if options.context_length is not None:
        config["max_position_embeddings"] = options.context_length
    if options.rope_theta is not None:
        config["rope_theta"] = options.rope_theta
    if config.get("rope_theta") is None:
        config["rope_theta"] = 10000.0  # transformers' LlamaConfig before the key existed: LLaMA-1 conversions of 2023
    return config


def _tokenizer(folder: Path, config: Config, options: OpenOptions) -> Tokenizer | None:
    if options.skip_tokenizer:
        return None
    if options.tokenizer is not None:
        if not options.tokenizer.is_file():
            raise InputError(f"{options.tokenizer}: no such file: --tokenizer names the model's tokenizer.model")
        return open_sentencepiece(options.tokenizer)
    return read_hugging_face(folder, config)


def _side_files(folder: Path, options: OpenOptions) -> dict[str, bytes]:
    if options.skip_tokenizer or options.tokenizer is not None:
        return {}
    return {name: (folder / name).read_bytes() for name in SIDE_FILES if (folder / name).is_file()}


def config_json(model: Model, dtype: DType) -> bytes:
    """config.json for `model` with matrices of `dtype`, readable by transformers 4.46 and later."""
    config = {**model.config, "torch_dtype": TORCH_NAMES.get(dtype.name, "float32")}
    return (json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def hugging_face_layout(
    model: Model, specs: list[TensorSpec], dtype: DType, max_shard_nbytes: int
) -> tuple[dict[str, FileLayout], dict[str, str]]:
    """-> ({file name: layout}, {tensor name: file name}) of the folder that holds `specs` and the model's facts."""
    if "max_position_embeddings" not in model.config:
        raise ModelError(
            f"{model.files[0].parent}: the context length is in none of its files: say it with --context-length "
            "(LLaMA 1 was trained at 2048, Llama 2 at 4096)"
        )
    shards = shard_plan(specs, max_shard_nbytes)
    files = {name: safetensors_layout(part, {"format": "pt"}) for name, part in shards}
    if len(shards) > 1:
        files["model.safetensors.index.json"] = literal(index_json(shards))
    files["config.json"] = literal(config_json(model, dtype))
    side = dict(model.side_files)
    if not side and model.tokenizer is not None:
        side = hugging_face_files(model.tokenizer, int(model.config["max_position_embeddings"]))
        side["generation_config.json"] = _generation_config(model)
    files |= {name: literal(content) for name, content in sorted(side.items())}
    return files, {spec.name: name for name, part in shards for spec in part}


def _generation_config(model: Model) -> bytes:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    facts = {key: model.config[key] for key in keys if model.config.get(key) is not None}
    return (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()
