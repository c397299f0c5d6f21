"""Meta's folder -> Model: consolidated.NN.pth shards, params.json, tokenizer.model (here or in the parent folder).

    meta_shards   the shards -> whole tensors              meta_fp8      weights with row scales in files beside them
    meta_heads    key-value heads that shards repeat       meta_params   what smelt put beside params.json

params.json has the last word on what it says; what it leaves out is told by the shapes, by smelt.config.json where smelt
wrote the folder, by the family's table of published models, or by the user.
Source: meta-llama/llama and llama3 (model.py), the published params.json files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError
from .architecture import Family, family_by
from .assemble import HEAD, assemble, canonical_config, resolve_head, said_by_hand
from .made_files import without_made
from .meta_heads import kv_heads, without_repeats
from .meta_params import SAID, MetaOrigin, read_beside
from .meta_shards import MetaShards, open_shards
from .model import Config, LazyTensor, Model
from .options import OpenOptions
from .side_files import SIDE_FILES, WITHOUT_VOCABULARY
from .tokenizer import Tokenizer
from .tokenizer_folder import read_files
from .tokenizer_open import open_tokenizer
from .tokenizer_tiktoken import is_llama3_1

PARAMS = "params.json"


def read_meta(folder: Path, options: OpenOptions) -> Model:
    """Open a Meta folder. Reads headers and params.json only. InputError and its kin say what is wrong."""
    where = str(folder / PARAMS)
    params, text = read_params(folder / PARAMS)
    own_tokenizer = options.skip_tokenizer or options.tokenizer is not None
    beside = read_beside(folder, WITHOUT_VOCABULARY if own_tokenizer else SIDE_FILES)
    family = family_by("name", "llama", str(folder))
    shards = open_shards(folder, family, params)
    n_stored, n_kv_heads = kv_heads(params, _said_kv_heads(options, beside.config), where)
    stored, repeats = without_repeats(shards.tensors, shards.matches, n_stored, n_kv_heads, str(folder))
    said = params if n_kv_heads == n_stored else {**params, "n_kv_heads": n_kv_heads}
    config = canonical_config(family, meta_facts(family, said, stored, options, beside.config), where)
    tensors, names = assemble(family, "meta", stored, config, str(folder))
    if shards.head_is_alias:
        config["tie_word_embeddings"] = True
    notes = _notes(params, shards, options, tied=HEAD not in tensors)
    assumptions = resolve_head(family, tensors, config, str(folder), absent_means_tied=True)
    tokenizer = _tokenizer(folder, config, beside.side_files, options)
    side_files = beside.side_files
    if tokenizer is not None and not own_tokenizer:
        came = without_made({**tokenizer.files, **side_files}, beside.made)
        if len(came) < len({**tokenizer.files, **side_files}):
            tokenizer, side_files = replace(tokenizer, files=came), {}
    if tokenizer is not None and not beside.config:  # a config that came with the folder keeps its own
        for key, value in (("bos_token_id", tokenizer.bos_id), ("eos_token_id", tokenizer.eos_id)):
            config.setdefault(key, value)
    return Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source="meta",
        files=shards.files,
        stored_names=names,
        norm_dtype=next(tensor.dtype for tensor in stored.values() if len(tensor.shape) == 1),
        side_files=side_files,
        kept=MetaOrigin(text, len(shards.files), shards.embedding_split).kept() if beside.kept is None else beside.kept,
        assumptions=(*repeats, *assumptions),
        notes=notes,
    )


def read_params(path: Path) -> tuple[dict[str, Any], str]:
    """params.json as it is, and its text. InputError where it is missing, FormatError where it is no object."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing: without it the head count is unknown; copy it beside the .pth files"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        text = content.decode()
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    if isinstance(params, dict) and isinstance(params.get("model"), dict):
        params = params["model"]  # some wrappers nest the facts
    if not isinstance(params, dict):
        raise FormatError(f"{path}: holds {type(params).__name__}, wanted an object such as {{'dim': 4096, ...}}")
    return params, text


def meta_facts(
    family: Family,
    params: Mapping[str, Any],
    stored: Mapping[str, LazyTensor],
    options: OpenOptions,
    beside: Mapping[str, Any],
) -> dict[str, Any]:
    """Canonical config values out of params.json, the joined shapes, the config beside them and what the user says."""
    if family.from_params is None:
        raise ModelError(f"{family.name}: has no Meta dialect")
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    dtype = stored["tok_embeddings.weight"].dtype.name if "tok_embeddings.weight" in stored else ""
    facts = family.from_params(params, shapes, dtype)
    facts |= {
        key: value for key, value in beside.items() if key not in SAID and (value is not None or key not in facts)
    }
    return said_by_hand(family, "meta", facts, stored, options, PARAMS)


def _said_kv_heads(options: OpenOptions, beside: Mapping[str, Any]) -> object:
    return beside.get("num_key_value_heads") if options.kv_heads is None else options.kv_heads


def _notes(params: Mapping[str, Any], shards: MetaShards, options: OpenOptions, *, tied: bool) -> tuple[str, ...]:
    """What was taken for granted."""
    notes = []
    if options.rope_theta is None and params.get("rope_theta") is None:
        notes.append("params.json names no rope_theta: 10000, as Meta's own code fixes it for such files")
    if tied:
        notes.append("the shards hold no output.weight: the head is the embedding")
    if shards.fp8:
        notes.append("FP8 weights were multiplied by their row scales and rounded to BF16")
    return tuple(notes)


def _tokenizer(folder: Path, config: Config, side_files: Mapping[str, bytes], options: OpenOptions) -> Tokenizer | None:
    """The tokenizer; ModelError where it has more pieces than the embedding has rows."""
    if options.skip_tokenizer:
        return None
    found = read_files(side_files, config, folder)
    if found is None:
        found = find_tokenizer(folder, options, is_llama3_1(config))
    if found is None:
        return None
    if len(found.pieces) > config["vocab_size"]:
        raise ModelError(
            f"{folder}: tokenizer.model has {len(found.pieces)} pieces, the embedding only {config['vocab_size']} "
            "rows: it belongs to another model; name the right one with --tokenizer"
        )
    return found


def find_tokenizer(folder: Path, options: OpenOptions, llama3_1: bool) -> Tokenizer | None:
    """The tokenizer that the user names, or the tokenizer.model in the folder or its parent; None where there is none.

    `llama3_1`: the model is Llama 3.1 or later, whose special tokens have names of their own.
    """
    candidates = (
        [options.tokenizer] if options.tokenizer else [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    )
    for path in candidates:
        if path.is_file():
            return open_tokenizer(path, llama3_1)
    if options.tokenizer:
        raise InputError(f"{options.tokenizer}: no such file: --tokenizer names the model's tokenizer.model")
    return None
