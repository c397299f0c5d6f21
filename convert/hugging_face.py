"""A Hugging Face folder <-> Model: weights (single or with an index), config.json, tokenizer files.

    model.safetensors | model-0000N-of-0000K.safetensors + model.safetensors.index.json
    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json  tokenizer.model

Canonical names and layouts are Hugging Face's, so tensors pass through as they are. What transformers 5 spells anew
(`rope_parameters`, `dtype`) is read in both spellings and written in the old one, which both generations open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..dtypes import F32, DType
from ..errors import FormatError, InputError, ModelError
from ..formats.checkpoint import Checkpoint, FileLayout, TensorSpec, literal
from ..formats.safetensors import index_json, open_safetensors, safetensors_layout, shard_plan
from ..formats.torch_bin import is_torch_bin, open_torch_bin
from .architecture import Family, family_by
from .assemble import HEAD, assemble, canonical_config, resolve_head
from .meta_params import ORIGIN
from .meta_shards import lazy
from .model import Config, Model
from .options import OpenOptions
from .rope import flatten_rope
from .side_files import read_side_files
from .tokenizer import Tokenizer
from .tokenizer_files import hugging_face_files
from .tokenizer_folder import read_hugging_face
from .tokenizer_open import is_llama3_1, open_tokenizer

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def read_hugging_face_model(path: Path, options: OpenOptions) -> Model:
    """Open a folder, or a .safetensors file with its config.json beside it. Reads headers and JSON only."""
    folder = path if path.is_dir() else path.parent
    checkpoint = _open_weights(path)
    config_path = folder / "config.json"
    raw = read_json(config_path)
    if raw.get("quantization_config") is not None:
        method = raw["quantization_config"].get("quant_method") if isinstance(raw["quantization_config"], dict) else "?"
        raise ModelError(f"{config_path}: the weights are quantized ({method}): smelt does not read this dialect yet")
    family = family_by("model_type", str(raw.get("model_type")), str(config_path))
    config = canonical_config(family, _portable(family, raw, options, str(config_path)), str(config_path))
    spelled = _spelled(family, checkpoint.tensors)
    stored = {name: lazy(checkpoint.tensors[spelled[name]]) for name in spelled}
    tensors, names = assemble(family, "canonical", stored, config, str(path))
    assumptions = resolve_head(family, tensors, config, str(config_path), absent_means_tied=False)
    return Model(
        family.name,
        config,
        _tokenizer(folder, config, options),
        tensors,
        source=checkpoint.format,
        files=checkpoint.files,
        stored_names={canonical: spelled[name] for canonical, name in names.items()},
        norm_dtype=next((tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 1), F32),
        side_files=_side_files(folder, options),
        kept={key: text for key, text in checkpoint.metadata.items() if key == ORIGIN and isinstance(text, str)},
        assumptions=assumptions,
    )


def _open_weights(path: Path) -> Checkpoint:
    """safetensors, else the .bin files that transformers wrote before them."""
    is_bin = path.suffix == ".bin" or (path.is_dir() and not any(path.glob("*.safetensors")) and is_torch_bin(path))
    return open_torch_bin(path) if is_bin else open_safetensors(path)


def _spelled(family: Family, names: Iterable[str]) -> dict[str, str]:
    """{full name: name in the files}: those of a model saved without its head lack the family's prefix."""
    if not family.prefix or any(name.startswith(family.prefix) for name in names):
        return {name: name for name in names}
    return {name if name == HEAD else f"{family.prefix}{name}": name for name in names}


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


def _portable(family: Family, raw: Mapping[str, Any], options: OpenOptions, where: str) -> dict[str, Any]:
    """The config in transformers' older spelling, options applied."""
    config = flatten_rope(dict(raw), family.says("rope_local_base_freq"), where)
    config = family.from_config(config)
    for key in ("dtype", "torch_dtype", "transformers_version", "quantization_config"):
        config.pop(key, None)
    if options.context_length is not None:
        config["max_position_embeddings"] = options.context_length
    if options.rope_theta is not None:
        config["rope_theta"] = options.rope_theta
    return config


def _tokenizer(folder: Path, config: Config, options: OpenOptions) -> Tokenizer | None:
    if options.skip_tokenizer:
        return None
    if options.tokenizer is not None:
        return open_tokenizer(options.tokenizer, is_llama3_1(config))
    return read_hugging_face(folder, config)


def _side_files(folder: Path, options: OpenOptions) -> dict[str, bytes]:
    if options.skip_tokenizer or options.tokenizer is not None:
        return {}
    return read_side_files(folder)


def config_json(model: Model, dtype: DType) -> bytes:
    """config.json for `model` with matrices of `dtype`, readable by transformers 4.46 and later."""
    config = {**model.config, "torch_dtype": TORCH_NAMES.get(dtype.name, "float32")}
    return (json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def hugging_face_layout(
    model: Model, specs: list[TensorSpec], dtype: DType, max_shard_nbytes: int
) -> dict[str, FileLayout]:
    """{file name: layout} of the folder that holds `specs` and the model's facts."""
    if "max_position_embeddings" not in model.config:
        raise ModelError(
            f"{model.files[0].parent}: the context length is in none of its files: say it with --context-length "
            "(LLaMA 1 was trained at 2048, Llama 2 at 4096)"
        )
    shards = shard_plan(specs, max_shard_nbytes)
    files = {name: safetensors_layout(part, {"format": "pt", **model.kept}) for name, part in shards}
    if len(shards) > 1:
        files["model.safetensors.index.json"] = literal(index_json(shards))
    files["config.json"] = literal(config_json(model, dtype))
    side = dict(model.side_files)
    if not side and model.tokenizer is not None:
        side = hugging_face_files(model.tokenizer, int(model.config["max_position_embeddings"]))
        side.setdefault("generation_config.json", _generation_config(model))
    files |= {name: literal(content) for name, content in sorted(side.items())}
    return files


def _generation_config(model: Model) -> bytes:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    facts = {key: model.config[key] for key in keys if model.config.get(key) is not None}
    return (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()
