"""The shards of a Meta folder -> whole tensors under Meta's names, still unread.

    consolidated.00.pth  | wq rows 0..n/2 | wo columns 0..n/2 | norm (whole) |     column-parallel: joined along rows
    consolidated.01.pth  | wq rows n/2..n | wo columns n/2..n | norm (whole) |     row-parallel: joined along columns

Which way each tensor is joined is the family's table; the embedding is divided along columns by LLaMA 1 and 2, along rows
since Llama 3: its shape tells. Of what every shard holds whole, the first shard's copy is taken.
Source: meta-llama/llama and llama3 (model.py, fairscale's parallel layers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, ModelError, quoted
from ..formats.checkpoint import Checkpoint, StoredTensor
from ..formats.pth import open_pth
from .architecture import Family, Match, match_names
from .assemble import EMBEDDING, HEAD
from .layouts import join_columns, join_rows
from .meta_fp8 import multiplied_out, open_scales
from .model import LazyTensor

SHARD = re.compile(r"consolidated(?:\.(\d{2,3}))?\.pth")

Shard = Mapping[str, LazyTensor]

MOST_SHARDS = 100  # as many as two digits count


@dataclass(frozen=True)
class MetaShards:
    """The files in order, what each name means, and the whole tensors.

    embedding_split  the dimension that divides the embedding (1 where there is one shard)
    head_is_alias    the head's bytes are the embedding's, in every shard; fp8  weights were multiplied by their scales
    """

    files: tuple[Path, ...]
    matches: dict[str, Match]
    tensors: dict[str, LazyTensor]
    embedding_split: int
    head_is_alias: bool
    fp8: bool


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


def open_shards(folder: Path, family: Family, params: Mapping[str, Any]) -> MetaShards:
    """Every shard's headers. InputError where one is missing, ModelError where they are not shards of one model."""
    files = shard_files(folder)
    checkpoints = [open_pth(path) for path in files]
    matches = _matched(family, files, checkpoints)
    shards: list[Shard] = [{name: lazy(checkpoint.tensors[name]) for name in matches} for checkpoint in checkpoints]
    _check_complete(folder, params, matches, shards)
    scales = open_scales(folder, len(files))
    named = {match.row.canonical: name for name, match in matches.items()}
    if scales is None:
        _refuse_fp8(folder, shards)
    else:
        shards = [multiplied_out(path, shard, of) for path, shard, of in zip(files, shards, scales, strict=True)]
    split = _embedding_split(folder, params, named.get(EMBEDDING), shards)
    tensors = {
        name: _joined(name, split if match.row.canonical == EMBEDDING else match.row.split, shards)
        for name, match in matches.items()
    }
    alias = _is_alias(named.get(HEAD), named.get(EMBEDDING), checkpoints)
    return MetaShards(tuple(files), matches, tensors, split, alias, scales is not None)


def lazy(tensor: StoredTensor) -> LazyTensor:
    """A stored tensor as the model sees it, under its own name and layout."""
    return LazyTensor(tensor.name, tensor.shape, tensor.dtype, tensor.read)


def _matched(family: Family, files: Sequence[Path], checkpoints: Sequence[Checkpoint]) -> dict[str, Match]:
    """What each name means; every shard has to hold the same ones."""
    matches = match_names(family, "meta", checkpoints[0].tensors, str(files[0]))
    for path, checkpoint in zip(files[1:], checkpoints[1:], strict=True):
        other = match_names(family, "meta", checkpoint.tensors, str(path))
        if different := sorted(set(other) ^ set(matches)):
            raise ModelError(f"{path}: does not hold the same tensors as {files[0].name}: {', '.join(different)}")
    return matches


def _check_complete(
    folder: Path, params: Mapping[str, Any], matches: Mapping[str, Match], shards: Sequence[Shard]
) -> None:
    """InputError where the shards' own share of the queries' rows says that there are more of them."""
    dim = params.get("dim")
    name = next((name for name, match in matches.items() if match.row.role == "attn_q" and match.layer == 0), None)
    if type(dim) is not int or name is None or len(shards[0][name].shape) != 2:
        return
    rows = shards[0][name].shape[0]
    wanted = dim // rows if rows and not dim % rows else 0
    if wanted > len(shards):
        missing = ", ".join(f"consolidated.{number:02d}.pth" for number in range(len(shards), min(wanted, MOST_SHARDS)))
        raise InputError(
            f"{folder}: {name} has {rows} of {quoted(dim)} rows in each shard, so there are {quoted(wanted)} shards, and "
            f"{len(shards)} here: {missing or 'most'} is missing: the download is incomplete"
        )


def _embedding_split(folder: Path, params: Mapping[str, Any], name: str | None, shards: Sequence[Shard]) -> int:
    """1 where the shards' columns add up to the model's width, 0 where each has that width."""
    if name is None or len(shards) == 1 or len(shards[0][name].shape) != 2:
        return 1
    dim, columns = params.get("dim"), shards[0][name].shape[1]
    if dim not in (columns, columns * len(shards)):
        raise ModelError(
            f"{folder}: {name} has {columns} columns in each of {len(shards)} shards, params.json says dim {dim}: they do "
            "not belong together"
        )
    return 0 if columns == dim else 1


def _joined(name: str, split: int | None, shards: Sequence[Shard]) -> LazyTensor:
    parts = [shard[name] for shard in shards]
    if split is None:
        return parts[0]
    return join_rows(name, parts) if split == 0 else join_columns(name, parts)


def _refuse_fp8(folder: Path, shards: Sequence[Shard]) -> None:
    names = sorted({name for shard in shards for name, tensor in shard.items() if tensor.dtype.name.startswith("F8")})
    if names:
        raise ModelError(
            f"{folder}: {len(names)} tensors are FP8 ({names[0]} first), which mean nothing without fp8_scales_0.pt and so "
            "on: put those files beside the shards"
        )


def _is_alias(head: str | None, embedding: str | None, checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether head and embedding are one view of one storage in every shard."""
    if head is None or embedding is None:
        return False
    pairs = [(checkpoint.tensors[head], checkpoint.tensors[embedding]) for checkpoint in checkpoints]
    return all((a.offset, a.shape, a.strides) == (b.offset, b.shape, b.strides) for a, b in pairs)
