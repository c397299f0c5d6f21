"""A Hugging Face folder -> Model: weights (single or with an index), config.json, tokenizer files.

    model.safetensors | model-0000N-of-0000K.safetensors + model.safetensors.index.json | a third party's container
    config.json  generation_config.json  tokenizer.json  tokenizer_config.json  special_tokens_map.json  tokenizer.model

Canonical names and layouts are Hugging Face's, so tensors pass through as they are. What transformers 5 spells anew
(`rope_parameters`, `dtype`) is read in both spellings. Matrices that a third party's scheme stores are decoded while they
are read (`packed`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..dtypes import F32
from ..errors import FormatError, InputError
from ..formats.checkpoint import Checkpoint
from ..formats.safetensors import open_safetensors
from ..formats.torch_bin import is_torch_bin, open_torch_bin
from .architecture import Family, family_by
from .assemble import HEAD, assemble, canonical_config, resolve_head, said_by_hand
from .made_files import without_made
from .meta_params import ORIGIN
from .model import Config, Model
from .options import OpenOptions
from .packed import unpacked
from .rope import flatten_rope
from .side_files import SIDE_FILES, WITHOUT_VOCABULARY, read_side_files
from .tokenizer import Tokenizer
from .tokenizer_folder import read_hugging_face
from .tokenizer_open import open_tokenizer
from .tokenizer_tiktoken import is_llama3_1


def read_hugging_face_model(
    path: Path, options: OpenOptions, open_weights: Callable[[Path], Checkpoint] | None = None
) -> Model:
    """Open a folder, or a file of weights with its config.json beside it. Reads headers and JSON only.

    open_weights  what opens a third party's container at `path`; None: safetensors or .bin
    """
    folder = path if path.is_dir() else path.parent
    checkpoint = (open_weights or _open_weights)(path)
    config_path = folder / "config.json"
    raw = read_json(config_path)
    family = family_by("model_type", str(raw.get("model_type")), str(config_path))
    whole = unpacked(checkpoint.tensors, raw.get("quantization_config"), str(config_path))
    spelled = _spelled(family, whole.tensors)
    stored = {name: replace(whole.tensors[spelled[name]], name=name) for name in spelled}
    facts = said_by_hand(family, "canonical", _portable(family, raw, str(config_path)), stored, options, str(path))
    config = canonical_config(family, facts, str(config_path))
    tensors, names = assemble(family, "canonical", stored, config, str(path))
    assumptions = resolve_head(family, tensors, config, str(config_path), absent_means_tied=False)
    tokenizer, side_files = _tokenizer(folder, config, options), _side_files(folder, options)
    if not (options.skip_tokenizer or options.tokenizer is not None):
        came = without_made(side_files, checkpoint.metadata)
        if tokenizer is not None and len(came) < len(side_files):
            tokenizer, side_files = replace(tokenizer, files=came), {}
    return Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source=checkpoint.format,
        files=checkpoint.files,
        stored_names={canonical: spelled[name] for canonical, name in names.items()},
        norm_dtype=next((tensor.dtype for tensor in tensors.values() if len(tensor.shape) == 1), F32),
        side_files=side_files,
        kept={key: text for key, text in checkpoint.metadata.items() if key == ORIGIN and isinstance(text, str)},
        assumptions=assumptions,
        notes=whole.notes,
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


def _portable(family: Family, raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The config in transformers' older spelling."""
    config = flatten_rope(dict(raw), family.says("rope_local_base_freq"), where)
    config = family.from_config(config)
    for key in ("dtype", "torch_dtype", "transformers_version", "quantization_config"):
        config.pop(key, None)
    return config


def _tokenizer(folder: Path, config: Config, options: OpenOptions) -> Tokenizer | None:
    if options.skip_tokenizer:
        return None
    if options.tokenizer is not None:
        return open_tokenizer(options.tokenizer, is_llama3_1(config))
    return read_hugging_face(folder, config)


def _side_files(folder: Path, options: OpenOptions) -> dict[str, bytes]:
    own_tokenizer = options.skip_tokenizer or options.tokenizer is not None
    return read_side_files(folder, WITHOUT_VOCABULARY if own_tokenizer else SIDE_FILES)
