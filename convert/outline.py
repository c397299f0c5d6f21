"""A model before its weights are here: Meta's params.json says every shape, so sizes can be told while a download runs.

    params.json  ->  shapes by Meta's own formulas  ->  Model whose tensors cannot be read

The vocabulary, if params.json does not say it (`vocab_size: -1`), is the tokenizer's, or a published model's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..dtypes import DTYPES
from ..errors import InputError, ModelError, UsageError
from ..formats.checkpoint import Bytes
from .architecture import family_by
from .assemble import assemble, canonical_config
from .meta import PARAMS, find_tokenizer, meta_facts, read_params
from .meta_params import MetaOrigin, published_shards, read_beside
from .model import LazyTensor, Model
from .open import open_model
from .options import OpenOptions


def open_outline(path: Path, options: OpenOptions, vocab_size: int | None = None) -> Model:
    """The outline of a Meta folder, whatever weights are in it already; any other source is opened as usual.

    A context length that nothing tells is left out of the config.
    """
    if not (path / PARAMS).is_file() or any(path.glob("*.safetensors")):
        if vocab_size is not None:
            raise UsageError(f"--vocab-size is for a Meta folder, {path} says its own: leave it out")
        return open_model(path, options)
    params, text = read_params(path / PARAMS)
    family = family_by("name", "llama", str(path))
    if family.shapes_from_params is None:
        raise ModelError(f"{family.name}: its shapes cannot be told without the weights")
    tokenizer = None if options.skip_tokenizer else find_tokenizer(path, options, params.get("use_scaled_rope") is True)
    said = params.get("vocab_size")
    if vocab_size is None and said not in (None, -1):
        vocab_size = said
    if vocab_size is None and tokenizer is not None:
        vocab_size = len(tokenizer.pieces)
    shapes, dtype = family.shapes_from_params(params, vocab_size)
    stored = {name: LazyTensor(name, shape, DTYPES[dtype], _unreadable(path, name)) for name, shape in shapes.items()}
    facts = meta_facts(family, params, stored, options, read_beside(path, ()).config)
    config = canonical_config(family, facts, str(path / PARAMS))
    tensors, names = assemble(family, "meta", stored, config, str(path))
    config["tie_word_embeddings"] = False
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    outline = Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source="meta",
        files=(path / PARAMS,),
        stored_names=names,
        norm_dtype=DTYPES[dtype],
        notes=("from params.json alone: the weights were not looked at",),
    )
    # what the weights' own model carries for the way back takes room in a file, too
    return replace(outline, kept=MetaOrigin(text, published_shards(outline), 1).kept())


def _unreadable(path: Path, name: str) -> Callable[[int, int], Bytes]:
    def read(_start_row: int, _stop_row: int) -> Bytes:
        raise InputError(f"{path}: {name}: only {PARAMS} was opened: open the checkpoint once the weights are there")

    return read
