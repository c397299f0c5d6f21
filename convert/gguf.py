"""A GGUF file <-> Model: typed keys, one table of names, rotary rows in adjacent pairs, vectors always F32.

What GGUF has no key for travels under `smelt.*`, so that a conversion back gives the same facts:

    smelt.config           the canonical config.json; where a GGUF key disagrees with it, the GGUF key wins
    smelt.norm_dtype       what the norms were before GGUF made them F32
    smelt.tokenizer.model  the SentencePiece file, byte for byte

Sources: ggml docs/gguf.md, llama.cpp (llama-model.cpp, LLM_KV names), checked by loading in llama-cpp-python.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import BF16, DTYPES, F16, F32, DType
from ..errors import ModelError, quoted
from ..formats.checkpoint import FileLayout, TensorSpec
from ..formats.gguf import GGUFValue, gguf_layout, open_gguf
from .architecture import Fact, Family, Match, family_by, match_names
from .assemble import assemble, canonical_config, resolve_head
from .layouts import halves_to_pairs
from .meta import lazy
from .model import Config, LazyTensor, Model
from .options import OpenOptions
from .tokenizer import Tokenizer, open_sentencepiece
from .tokenizer_gguf import gguf_vocabulary, read_gguf_vocabulary

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp, llama.h: llama_ftype
PLAIN = (F32, F16, BF16)  # what ggml can hold unquantized among a model's dtypes

# keys that change the arithmetic and have no canonical counterpart here: better refused than ignored
_REFUSED = ("expert_count", "rope.scaling.type", "attention.sliding_window", "attention.clamp_kqv", "logit_scale")
_SCALES = ("rope.scaling.factor", "rope.scale_linear")  # without a type, llama.cpp scales linearly by them


def read_gguf_model(path: Path, options: OpenOptions) -> Model:
    """Open a GGUF file or split set. Reads headers only."""
    checkpoint = open_gguf(path)
    metadata = checkpoint.metadata
    family = family_by("gguf", str(metadata.get("general.architecture")), str(path))
    facts, norm_dtype = _facts(family, metadata, str(path))
    if options.context_length is not None:
        facts["max_position_embeddings"] = options.context_length
    if options.rope_theta is not None:
        facts["rope_theta"] = options.rope_theta
    stored = {name: lazy(tensor) for name, tensor in checkpoint.tensors.items()}
    if "vocab_size" not in facts and "token_embd.weight" in stored:
        facts["vocab_size"] = stored["token_embd.weight"].shape[0]
    config = canonical_config(family, facts, str(path))
    tensors, names = assemble(family, "gguf", stored, config, str(path))
    assumptions = resolve_head(tensors, config, str(path), absent_means_tied=True)
    tokenizer = None
    if options.tokenizer is not None and not options.skip_tokenizer:
        tokenizer = open_sentencepiece(options.tokenizer)
    elif not options.skip_tokenizer and "tokenizer.ggml.model" in metadata:
        tokenizer = read_gguf_vocabulary(metadata)
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    return Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source="gguf",
        files=checkpoint.files,
        stored_names=names,
        norm_dtype=norm_dtype,
        assumptions=assumptions,
    )


def _facts(family: Family, metadata: Mapping[str, Any], where: str) -> tuple[dict[str, Any], DType]:
    """Canonical config values out of GGUF's keys, completed from `smelt.config` where it agrees."""
    refused = [key for key in _REFUSED if metadata.get(f"{family.gguf}.{key}") not in (None, 0, "none")]
    refused += [key for key in _SCALES if metadata.get(f"{family.gguf}.{key}") not in (None, 0, 1)]
    if refused:
        raise ModelError(f"{where}: {family.gguf}.{refused[0]} is set: smelt does not support it yet")
    kept: dict[str, Any] = {}
    if isinstance(metadata.get("smelt.config"), str):
        try:
            kept = json.loads(metadata["smelt.config"])
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{where}: smelt.config is not JSON: {error}") from None
    facts = dict(kept) if isinstance(kept, dict) else {}
    said: dict[str, str] = {}
    for fact in family.facts:
        value = metadata.get(f"{family.gguf}.{fact.gguf}")
        if value is None:
            if fact.required:
                raise ModelError(f"{where}: the key {family.gguf}.{fact.gguf} is missing: the file is incomplete")
            continue
        agreed = _agreed(fact, value, facts.get(fact.key), where)
        if fact.key in said and facts[fact.key] != agreed:
            raise ModelError(
                f"{where}: {fact.gguf} is {agreed}, {said[fact.key]} is {facts[fact.key]}: smelt knows models only where "
                "the two are equal"
            )
        facts[fact.key], said[fact.key] = agreed, fact.gguf
    facts.setdefault("rope_theta", 10000.0)  # llama.cpp's own default for a file without the key
    norm = DTYPES.get(str(metadata.get("smelt.norm_dtype")), F32)
    return facts, norm


def _agreed(fact: Fact, value: Any, kept: Any, where: str) -> Any:
    """The GGUF value; as precise as `smelt.config` tells it, where that rounds to the same float32."""
    wanted = (int,) if fact.type == "u32" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ModelError(f"{where}: {fact.gguf} is {quoted(value)}, wanted a number ({fact.type})")
    if fact.type == "u32":
        return int(value)
    single = np.float32(value)
    if isinstance(kept, (int, float)) and np.float32(kept) == single:
        return kept
    return float(str(single))  # the shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06


def to_gguf_tensor(family: Family, tensor: LazyTensor, config: Config) -> tuple[str, LazyTensor, Match]:
    """A canonical tensor -> (its GGUF name, in GGUF's layout, its row)."""
    match = match_names(family, "canonical", [tensor.name], tensor.name)[tensor.name]
    if match.row.rotary is not None:
        tensor = halves_to_pairs(tensor, int(config[match.row.rotary]))
    return match.name("gguf"), tensor, match


def gguf_file(
    model: Model,
    family: Family,
    specs: list[TensorSpec],
    file_type: int,
    pad_to: int,
    provenance: Mapping[str, str | int],
) -> FileLayout:
    """The layout of a file that holds `specs`. ModelError where a fact that llama.cpp requires is unknown."""
    metadata = _metadata(model, family, specs, file_type, pad_to)
    for key, value in provenance.items():
        metadata[key] = GGUFValue("string" if isinstance(value, str) else "u32", value)
    return gguf_layout(specs, metadata)


def _metadata(
    model: Model, family: Family, specs: list[TensorSpec], file_type: int, n_vocab: int
) -> dict[str, GGUFValue]:
    if "max_position_embeddings" not in model.config:
        raise ModelError(
            f"{model.files[0].parent}: the context length is in none of its files, and GGUF requires it: say it with "
            "--context-length (LLaMA 1 was trained at 2048, Llama 2 at 4096)"
        )
    size = sum(prod(spec.shape) for spec in specs)
    metadata = {
        "general.architecture": GGUFValue("string", family.gguf),
        "general.name": GGUFValue("string", f"{family.name} {size / 1e9:.2f}B"),
        "general.file_type": GGUFValue("u32", file_type),
        "general.quantization_version": GGUFValue("u32", 2),
    }
    for fact in family.facts:
        value = model.config.get(fact.key)
        if value is not None:
            number = int(value) if fact.type == "u32" else float(value)
            metadata[f"{family.gguf}.{fact.gguf}"] = GGUFValue(fact.type, number)
    if model.tokenizer is not None:
        metadata |= gguf_vocabulary(model.tokenizer, n_vocab)
    kept = {key: value for key, value in model.config.items() if value is not None}
    metadata["smelt.config"] = GGUFValue("string", json.dumps(kept, sort_keys=True, allow_nan=False))
    metadata["smelt.norm_dtype"] = GGUFValue("string", model.norm_dtype.name)
    return metadata


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer; ModelError where it has none."""
    if model.tokenizer is None:
        raise ModelError(
            f"{model.files[0].parent}: no tokenizer.model there nor in the parent folder, and GGUF carries its own "
            "vocabulary: name it with --tokenizer FILE, or leave it out on purpose with --skip-tokenizer"
        )
    return model.tokenizer
