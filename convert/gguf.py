"""A GGUF file <-> Model: typed keys, one table of names, rotary rows in adjacent pairs, vectors always F32.

What GGUF has no key for travels under `smelt.*`, so that a conversion back gives the same facts and bytes:

    smelt.config           the canonical config.json; where a GGUF key disagrees with it, the GGUF key wins
    smelt.token_ids        BOS and EOS of the vocabulary where config.json says others: it keeps them while these stand
    smelt.norm_dtype       what the norms were before GGUF made them F32
    smelt.norm.<tensor>    a norm as it was before 1 was added (Gemma), only where adding 1 in float32 rounds some value
    smelt.meta             how the Meta folder was that the model came from
    smelt.tokenizer.model  the SentencePiece file, byte for byte; smelt.files.<name> the other files beside the weights

Sources: ggml docs/gguf.md, llama.cpp (llama-model.cpp, LLM_KV names), checked by loading in llama-cpp-python.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import BF16, DTYPES, F16, F32
from ..errors import ModelError, quoted
from ..formats.checkpoint import TensorSpec
from ..formats.gguf import GGUFArray, GGUFValue, open_gguf
from ..kernels.scheme import Rows
from .architecture import Fact, Family, family_in_gguf, match_names
from .assemble import assemble, canonical_config, resolve_head, said_by_hand
from .layouts import unrounded
from .meta_params import ORIGIN
from .meta_shards import lazy
from .model import Config, LazyTensor, Model
from .options import OpenOptions
from .side_files import SIDE_FILES, WITHOUT_VOCABULARY
from .tokenizer import MODEL_FILE, Tokenizer
from .tokenizer_gguf import gguf_vocabulary, read_gguf_vocabulary
from .tokenizer_keys import FILES, carried_files, file_keys
from .tokenizer_open import open_tokenizer
from .tokenizer_tiktoken import is_llama3_1

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp, llama.h: llama_ftype
PLAIN = (F32, F16, BF16)  # what ggml can hold unquantized among a model's dtypes

TOKEN_IDS = "smelt.token_ids"
_NORM = "smelt.norm."
_CLOSE = 1e-4  # relative; a file's divisors were computed in float32 by whoever wrote it

# keys that change the arithmetic, and what they say where they do not; refused unless the family's table knows them
_REFUSED: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("expert_count", "attention.sliding_window", "attention.clamp_kqv", "leading_dense_block_count"), (0,)
    ),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention.scale"), (0,)),
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale"), (0, 1)),
    **dict.fromkeys(("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"), (0, 1)),
    "rope.scaling.type": ("none",),
    "attention.causal": (True,),
    "attention.sliding_window_pattern": (),
}


def read_gguf_model(path: Path, options: OpenOptions) -> Model:
    """Open a GGUF file or split set. Reads headers, and the divisors of rotary frequencies."""
    checkpoint = open_gguf(path)
    metadata, where = checkpoint.metadata, str(path)
    stored = {name: lazy(tensor) for name, tensor in checkpoint.tensors.items()}
    kept = _kept_config(metadata, where)
    family, keys = _family(metadata, kept, where)
    facts = _facts(family, keys, kept, stored, where)
    divisors = {
        derived: stored.pop(derived.gguf).load_float32() for derived in family.derived if derived.gguf in stored
    }
    for derived, values in divisors.items():
        facts |= derived.to_config(values, facts)
    facts = said_by_hand(family, "gguf", facts, stored, options, where)
    config = family.from_gguf(canonical_config(family, facts, where))
    tensors, names = assemble(family, "gguf", stored, config, where)
    _check_derived(family, config, divisors, where)
    tensors |= _unrounded(family, stored, names, metadata)
    assumptions = resolve_head(family, tensors, config, where, absent_means_tied=True)
    tokenizer = _tokenizer(metadata, config, options)
    carried = carried_files(metadata, SIDE_FILES)
    if tokenizer is None:
        carried = {name: content for name, content in carried.items() if name in WITHOUT_VOCABULARY}
    else:
        agreed = (*WITHOUT_VOCABULARY, *tokenizer.files)
        carried = {name: content for name, content in carried.items() if name in agreed}
        config |= _special_ids(tokenizer, config, metadata.get(TOKEN_IDS))
    return Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source="gguf",
        files=checkpoint.files,
        stored_names=names,
        norm_dtype=DTYPES.get(str(metadata.get("smelt.norm_dtype")), F32),
        side_files=carried,
        kept={key: metadata[key] for key in (ORIGIN,) if isinstance(metadata.get(key), str)},
        assumptions=assumptions,
    )


def _kept_config(metadata: Mapping[str, Any], where: str) -> Config:
    """The canonical config that smelt wrote into the file; empty where there is none."""
    content = metadata.get("smelt.config")
    if not isinstance(content, str):
        return {}
    try:
        kept = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where}: smelt.config is not JSON: {error}") from None
    return kept if isinstance(kept, dict) else {}


def _family(metadata: Mapping[str, Any], kept: Config, where: str) -> tuple[Family, dict[str, Any]]:
    """The family, and the keys under its architecture without that prefix; ModelError for keys that it does not know."""
    architecture = str(metadata.get("general.architecture"))
    prefix = f"{architecture}."
    keys = {key.removeprefix(prefix): metadata[key] for key in metadata if key.startswith(prefix)}
    family = family_in_gguf(architecture, keys, kept.get("model_type"), where)
    known = {fact.gguf for fact in family.facts} | {name for entry in family.keys for name in entry.names}
    refused = [key for key in _REFUSED if key not in known and keys.get(key) not in (None, *_REFUSED[key])]
    if refused:
        raise ModelError(f"{where}: {prefix}{refused[0]} is {quoted(keys[refused[0]])}: smelt does not support it yet")
    return family, keys


def _facts(
    family: Family, keys: Mapping[str, Any], kept: Config, stored: Mapping[str, LazyTensor], where: str
) -> dict[str, Any]:
    """Canonical config values out of GGUF's keys, completed from `smelt.config` where it agrees."""
    # what a family calls itself goes for files of that family alone: its package may not be installed here
    own = kept.get("model_type") == family.model_type
    facts = {key: value for key, value in kept.items() if own or key not in ("model_type", "architectures")}
    said: dict[str, str] = {}
    for fact in family.facts:
        value = keys.get(fact.gguf)
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
    for entry in family.keys:
        there = {name: keys[name] for name in entry.names if name in keys}
        if {name: _single(value) for name, value in entry.to_gguf(kept).items()} != there:
            facts |= entry.to_config({name: _shortest(value) for name, value in there.items()})
    for row in family.rows:
        if isinstance(row.when, str) and row.gguf is not None:
            facts.setdefault(row.when, row.gguf.replace("{layer}", "0") in stored)
    if family.says("rope_theta"):
        facts.setdefault("rope_theta", 10000.0)  # llama.cpp's own default for a file without the key
    if "vocab_size" not in facts and "token_embd.weight" in stored:
        facts["vocab_size"] = stored["token_embd.weight"].shape[0]
    return facts


def _agreed(fact: Fact, value: Any, kept: Any, where: str) -> Any:
    """The GGUF value; as precise as `smelt.config` tells it, where that rounds to the same float32."""
    wanted = (int,) if fact.type == "u32" else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ModelError(f"{where}: {fact.gguf} is {quoted(value)}, wanted a number ({fact.type})")
    if fact.type == "u32":
        return int(value)
    if type(kept) in (int, float) and _single(kept) == _single(value):
        return kept
    return _shortest(float(value))


def _single(value: Any) -> Any:
    """A float as a file holds it, in float32; anything else as it is."""
    if type(value) not in (int, float):
        return value
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def _shortest(value: Any) -> Any:
    """The shortest decimal that is this float32: 1e-05, not 9.999999747378752e-06; anything but a float as it is."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _check_derived(family: Family, config: Config, found: Mapping[Any, Rows], where: str) -> None:
    """ModelError where a file's computed tensor is not the one that its config asks for."""
    for derived in family.derived:
        values, stored = derived.values(config), found.get(derived)
        if values is None or stored is None:
            alike = values is None and (stored is None or bool((stored == 1).all()))
        else:
            alike = values.shape == stored.shape and np.allclose(values, stored, rtol=_CLOSE, atol=0)
        if not alike:
            asked = f"is not what rope_scaling {quoted(config.get('rope_scaling'))} gives"
            raise ModelError(f"{where}: {derived.gguf} {asked}: smelt knows this tensor as {derived.meaning} alone")


def _unrounded(
    family: Family, stored: Mapping[str, LazyTensor], names: Mapping[str, str], metadata: Mapping[str, Any]
) -> dict[str, LazyTensor]:
    """{canonical name: norm} of those whose values from before the layout's addition the file keeps."""
    found = {}
    for canonical, match in match_names(family, "canonical", names, family.name).items():
        layout, array = match.row.layouts.get("gguf"), metadata.get(_NORM + names[canonical])
        if layout is None or not layout.shifts or not isinstance(array, GGUFArray) or array.element_type != "f32":
            continue
        kept, tensor = array.numbers().astype(np.float32), stored[names[canonical]]
        if kept.shape == tensor.shape:
            found[canonical] = replace(unrounded(tensor, kept, layout.shifts), name=canonical)
    return found


def _tokenizer(metadata: Mapping[str, Any], config: Config, options: OpenOptions) -> Tokenizer | None:
    if options.skip_tokenizer:
        return None
    if options.tokenizer is not None:
        return open_tokenizer(options.tokenizer, is_llama3_1(config))
    return read_gguf_vocabulary(metadata) if "tokenizer.ggml.model" in metadata else None


def _special_ids(tokenizer: Tokenizer, config: Config, kept: Any) -> dict[str, Any]:
    """The vocabulary's BOS and EOS where the config says others, unless it did so when the file was written (`kept`)."""
    try:
        before = json.loads(kept) if isinstance(kept, str) else {}
    except (ValueError, RecursionError):
        before = {}
    found = _other_ids(tokenizer, config)
    return {key: id_ for key, id_ in found.items() if not isinstance(before, dict) or before.get(key) != id_}


def _other_ids(tokenizer: Tokenizer, config: Config) -> dict[str, int]:
    """The vocabulary's BOS and EOS where the config says other ids or none; a list that has the vocabulary's says the same."""
    found = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    said = {key: value if isinstance(value := config.get(key), list) else [value] for key in found}
    return {key: id_ for key, id_ in found.items() if id_ is not None and id_ not in said[key]}


def gguf_metadata(
    model: Model,
    family: Family,
    specs: list[TensorSpec],
    file_type: int,
    n_vocab: int,
    provenance: Mapping[str, str | int],
) -> dict[str, GGUFValue]:
    """Every key of a file that holds `specs`. Reads the norms of a family that stores them shifted, no other data.

    ModelError where a fact that llama.cpp requires is unknown, or where it would compute something else.
    """
    where = model.files[0].parent
    if "max_position_embeddings" not in model.config:
        raise ModelError(
            f"{where}: the context length is in none of its files, and GGUF requires it: say it with "
            "--context-length (LLaMA 1 was trained at 2048, Llama 2 at 4096)"
        )
    problems = family.gguf_checks(model.config)
    if family.gguf is None or problems:
        reason = "; ".join(problems) or f"GGUF has no architecture for {family.name}"
        raise ModelError(f"{where}: {reason}: choose --to safetensors")
    size = sum(prod(spec.shape) for spec in specs)
    metadata = {
        "general.architecture": GGUFValue("string", family.gguf),
        "general.name": GGUFValue("string", f"{family.name} {size / 1e9:.2f}B"),
        "general.file_type": GGUFValue("u32", file_type),
        "general.quantization_version": GGUFValue("u32", 2),
    }
    metadata |= {f"{family.gguf}.{key}": value for key, value in _numbers(family, model.config).items()}
    if model.tokenizer is not None:
        metadata |= gguf_vocabulary(model.tokenizer, n_vocab)
        if others := _other_ids(model.tokenizer, model.config):
            metadata[TOKEN_IDS] = GGUFValue("string", json.dumps(others))
    metadata["smelt.config"] = GGUFValue("string", json.dumps(model.config, sort_keys=True, allow_nan=False))
    metadata["smelt.norm_dtype"] = GGUFValue("string", model.norm_dtype.name)
    metadata |= {key: GGUFValue("string", text) for key, text in model.kept.items()}
    there = {name for name in model.side_files if name == MODEL_FILE or FILES + name in metadata}
    metadata |= file_keys({name: content for name, content in model.side_files.items() if name not in there})
    metadata |= _rounded_norms(family, model)
    metadata |= {
        key: GGUFValue("string" if isinstance(value, str) else "u32", value) for key, value in provenance.items()
    }
    return metadata


def _numbers(family: Family, config: Config) -> dict[str, GGUFValue]:
    """The architecture's keys, without the prefix."""
    convert: dict[str, Callable[[Any], int | float]] = {"u32": int, "f32": float}
    found = {
        fact.gguf: GGUFValue(fact.type, convert[fact.type](config[fact.key]))
        for fact in family.facts
        if config.get(fact.key) is not None
    }
    types = {bool: "bool", int: "u32", float: "f32", str: "string"}
    for entry in family.keys:
        found |= {name: GGUFValue(types[type(value)], value) for name, value in entry.to_gguf(config).items()}
    return found


def _rounded_norms(family: Family, model: Model) -> dict[str, GGUFValue]:
    """Norms that the layout's addition rounds, as they are."""
    kept = {}
    for canonical, match in match_names(family, "canonical", model.tensors, family.name).items():
        layout, tensor = match.row.layouts.get("gguf"), model.tensors[canonical]
        if layout is None or not layout.shifts:
            continue
        before = tensor.load_float32()
        back = layout.to_canonical(layout.to_stored(tensor, model.config), model.config).load_float32()
        if not np.array_equal(before.view(np.uint32), back.view(np.uint32)):
            kept[_NORM + match.name("gguf")] = GGUFValue("[f32]", before.tolist())
    return kept


def tokenizer_of(model: Model) -> Tokenizer:
    """The model's tokenizer; ModelError where it has none."""
    if model.tokenizer is None:
        raise ModelError(
            f"{model.files[0].parent}: no tokenizer.model there nor in the parent folder, and GGUF carries its own "
            "vocabulary: name it with --tokenizer FILE, or leave it out on purpose with --skip-tokenizer"
        )
    return model.tokenizer
