"""Meta's folder -> Model: consolidated.NN.pth shards, params.json, tokenizer.model (here or in the parent folder).

    consolidated.00.pth  | wq rows 0..n/2 | wo columns 0..n/2 | norm (whole) |     column-parallel: joined along rows
    consolidated.01.pth  | wq rows n/2..n | wo columns n/2..n | norm (whole) |     row-parallel: joined along columns

Which way each tensor is joined is the family's table; the embedding is divided along columns by LLaMA 1 and 2.
Source: meta-llama/llama (model.py, fairscale's parallel layers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError
from ..formats.checkpoint import Checkpoint, StoredTensor
from ..formats.pth import open_pth
from .architecture import Family, Match, family_by, match_names
from .assemble import EMBEDDING, HEAD, assemble, canonical_config, resolve_head
from .layouts import join_columns, join_rows
from .model import LazyTensor, Model
from .options import OpenOptions
from .tokenizer import Tokenizer, open_sentencepiece

SHARD = re.compile(r"consolidated(?:\.(\d{2,3}))?\.pth")


def is_meta(folder: Path) -> bool:
    """True for a folder that holds a shard by Meta's name."""
    return any(SHARD.fullmatch(path.name) for path in folder.iterdir())


def shard_files(folder: Path) -> list[Path]:
    """consolidated.00.pth .. consolidated.NN.pth without a gap, or the single consolidated.pth."""
    numbered = {int(m[1]): path for path in folder.iterdir() if (m := SHARD.fullmatch(path.name)) and m[1]}
    single = folder / "consolidated.pth"
    if single.exists():
        if numbered:
            raise InputError(f"{folder}: holds both consolidated.pth and numbered shards: keep one of the two models")
        return [single]
    missing = sorted(set(range(max(numbered, default=-1) + 1)) - set(numbered))
    if missing or not numbered:
        names = ", ".join(f"consolidated.{number:02d}.pth" for number in missing) or "consolidated.00.pth"
        raise InputError(f"{folder}: {names} is missing: the download is incomplete")
    return [numbered[number] for number in sorted(numbered)]


def read_meta(folder: Path, options: OpenOptions) -> Model:
    """Open a Meta folder. Reads headers and params.json only. InputError and its kin say what is wrong."""
    files = shard_files(folder)
    params = read_params(folder / "params.json")
    family = family_by("name", "llama", str(folder))
    checkpoints = [open_pth(path) for path in files]
    matches = match_names(family, "meta", checkpoints[0].tensors, str(files[0]))
    for path, checkpoint in zip(files[1:], checkpoints[1:], strict=True):
        other = match_names(family, "meta", checkpoint.tensors, str(path))
        if different := sorted(set(other) ^ set(matches)):
            raise ModelError(f"{path}: does not hold the same tensors as {files[0].name}: {', '.join(different)}")
    stored = {name: _joined(name, match, checkpoints) for name, match in matches.items()}
    facts = meta_facts(family, params, stored, options)
    config = canonical_config(family, facts, str(folder / "params.json"))
    tensors, names = assemble(family, "meta", stored, config, str(folder))
    if _is_alias(names.get(HEAD), names[EMBEDDING], checkpoints):
        config["tie_word_embeddings"] = True
    assumptions = resolve_head(tensors, config, str(folder), absent_means_tied=False)
    tokenizer = None if options.skip_tokenizer else find_tokenizer(folder, options)
    if tokenizer is not None:
        config |= {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        if len(tokenizer.pieces) > config["vocab_size"]:
            raise ModelError(
                f"{folder}: tokenizer.model has {len(tokenizer.pieces)} pieces, the embedding only {config['vocab_size']} "
                "rows: it belongs to another model; name the right one with --tokenizer"
            )
    return Model(
        family.name,
        config,
        tokenizer,
        tensors,
        source="meta",
        files=tuple(files),
        stored_names=names,
        norm_dtype=next(tensor.dtype for tensor in stored.values() if len(tensor.shape) == 1),
        assumptions=assumptions,
        notes=_notes(params, options),
    )


def read_params(path: Path) -> dict[str, Any]:
    """params.json as it is. InputError where it is missing, FormatError where it is no object."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path}: is missing: without it the head count is unknown; copy it beside the .pth files"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        params = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not JSON: {error}") from None
    if isinstance(params, dict) and isinstance(params.get("model"), dict):
        params = params["model"]  # some wrappers nest the facts
    if not isinstance(params, dict):
        raise FormatError(f"{path}: holds {type(params).__name__}, wanted an object such as {{'dim': 4096, ...}}")
    return params


def meta_facts(
    family: Family, params: Mapping[str, Any], stored: Mapping[str, LazyTensor], options: OpenOptions
) -> dict[str, Any]:
    """Canonical config values out of params.json, the joined shapes and what the user says."""
    if family.from_params is None:
        raise ModelError(f"{family.name}: has no Meta dialect")
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    dtype = stored["tok_embeddings.weight"].dtype.name if "tok_embeddings.weight" in stored else ""
    facts = family.from_params(params, shapes, dtype)
    if options.context_length is not None:
        facts["max_position_embeddings"] = options.context_length
    if options.rope_theta is not None:
        facts["rope_theta"] = options.rope_theta
    return facts


def _notes(params: Mapping[str, Any], options: OpenOptions) -> tuple[str, ...]:
    if options.rope_theta is not None or params.get("rope_theta") is not None:
        return ()
    return ("params.json names no rope_theta: 10000, as Meta's own code fixes it for such files",)


def _joined(name: str, match: Match, checkpoints: Sequence[Checkpoint]) -> LazyTensor:
    parts = [lazy(checkpoint.tensors[name]) for checkpoint in checkpoints]
    if match.row.split is None:
        return parts[0]
    return join_rows(name, parts) if match.row.split == 0 else join_columns(name, parts)


def lazy(tensor: StoredTensor) -> LazyTensor:
    """A stored tensor as the model sees it, under its own name and layout."""
    return LazyTensor(tensor.name, tensor.shape, tensor.dtype, tensor.read)


def _is_alias(head: str | None, embedding: str, checkpoints: Sequence[Checkpoint]) -> bool:
    if head is None:
        return False
    pairs = [(checkpoint.tensors[head], checkpoint.tensors[embedding]) for checkpoint in checkpoints]
    return all((a.offset, a.shape, a.strides) == (b.offset, b.shape, b.strides) for a, b in pairs)


def find_tokenizer(folder: Path, options: OpenOptions) -> Tokenizer | None:
    """The tokenizer that the user names, or the tokenizer.model in the folder or its parent; None where there is none."""
    candidates = (
        [options.tokenizer] if options.tokenizer else [folder / "tokenizer.model", folder.parent / "tokenizer.model"]
    )
    for path in candidates:
        if path.is_file():
            return open_sentencepiece(path)
    if options.tokenizer:
        raise InputError(f"{options.tokenizer}: no such file: --tokenizer names the model's tokenizer.model")
    return None
