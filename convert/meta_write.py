"""Model -> Meta's folder: N shards of every tensor, params.json, tokenizer.model, checklist.chk; each byte placed up front.

    wq wk wv w1 w3 output   rows, a share for each shard        (column-parallel)
    wo w2                   columns, a share for each shard     (row-parallel)
    tok_embeddings          columns in LLaMA 1 and 2, rows since Llama 3
    norms                   whole in every shard
    wk wv, fewer heads than shards: neighbouring shards hold the same head (see meta_heads.py)

A tied model's output.weight is written again, as Meta does: its loader wants the tensor.
Source: meta-llama/llama (model.py) and llama-models (checkpoint.py): what fairscale's parallel layers hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ModelError, UsageError
from ..formats.checkpoint import TensorSpec, literal
from ..formats.pth_write import TorchFile
from .architecture import Family, Match, match_names
from .assemble import EMBEDDING, HEAD, Laid, lay_out
from .carried import came_along, meta_side_files
from .checksums import CHECKLIST, checklist_layout, listed
from .made_files import made_words
from .meta_params import BESIDE, config_beside, embedding_split, params_json, published_shards
from .model import Model
from .places import Place
from .tokenizer import BYTE_LEVEL, MODEL_FILE
from .writer import Output, Placed, Writer, holds_torch

MAX_SHARDS = 100  # consolidated.NN.pth has two digits

Part = tuple[int, int, int, int]  # rows [start, stop) and columns [start, stop) of one shard


def meta_tensors(family: Family, model: Model) -> list[Laid]:
    """Every tensor under its Meta name and in Meta's layout; a tied head once more under its own name."""
    if family.from_params is None:
        raise ModelError(f"{model.files[0]}: {family.name} has no Meta dialect: choose --to safetensors or gguf")
    laid = lay_out(family, "meta", model.tensors, model.config)
    if HEAD not in model.tensors:
        name = match_names(family, "canonical", [HEAD], HEAD)[HEAD].name("meta")
        embedding = model.tensors[EMBEDDING]
        laid.append(Laid(name, embedding.shape, (embedding,)))
    return laid


def meta_layout(model: Model, family: Family, specs: Sequence[TensorSpec], n_shards: int) -> Placed:
    """The folder that holds `specs` (whole tensors under Meta's names) in `n_shards` shards.

    UsageError or ModelError where a tensor, or its heads, cannot be divided so.
    """
    if not 1 <= n_shards <= MAX_SHARDS:
        raise UsageError(f"--shards {n_shards}: wanted 1 to {MAX_SHARDS}")
    matches = match_names(family, "meta", (spec.name for spec in specs), str(model.files[0]))
    parts = _divided(model, specs, matches, n_shards)
    names = [f"consolidated.{rank:02d}.pth" for rank in range(n_shards)]
    pth = {
        name: TorchFile(Path(name).stem, tuple(_part_spec(spec, parts[spec.name][rank]) for spec in specs))
        for rank, name in enumerate(names)
    }
    files = {name: shard.layout() for name, shard in pth.items()}
    places = {
        spec.name: tuple(
            _place(name, files[name].slots[spec.name], spec, part)
            for name, part in zip(names, parts[spec.name], strict=True)
        )
        for spec in specs
    }
    files |= {name: literal(content) for name, content in _documents(model, n_shards).items()}
    files[CHECKLIST] = checklist_layout(listed(files))
    return Placed(files, places, pth)


def _documents(model: Model, n_shards: int) -> dict[str, bytes]:
    stored_kv_heads = max(int(model.config["num_key_value_heads"]), n_shards)
    beside = meta_side_files(model)
    carried = tuple(beside)
    if model.tokenizer is not None and MODEL_FILE not in beside:
        beside[MODEL_FILE] = model.tokenizer.model_file()
    came = came_along(model)
    if model.tokenizer is not None and model.tokenizer.kind == BYTE_LEVEL:
        came[MODEL_FILE] = beside[MODEL_FILE]  # ranks follow from the pieces: the same whether they came or were made
    made = made_words(beside, came)
    return {
        "params.json": params_json(model, stored_kv_heads),
        **dict(sorted(beside.items())),
        BESIDE: config_beside(model, carried, made),
    }


def _divided(
    model: Model, specs: Sequence[TensorSpec], matches: dict[str, Match], n_shards: int
) -> dict[str, list[Part]]:
    """Each tensor's part in each shard; ModelError lists every one that does not divide."""
    n_heads, n_kv_heads = int(model.config["num_attention_heads"]), int(model.config["num_key_value_heads"])
    if n_heads % n_shards or max(n_kv_heads, n_shards) % min(n_kv_heads, n_shards):
        raise UsageError(
            f"--shards {n_shards}: {n_heads} heads and {n_kv_heads} key-value heads cannot be shared out among so many"
        )
    parts, bad = {}, []
    for spec in specs:
        row = matches[spec.name].row
        split = embedding_split(model) if row.canonical == EMBEDDING else row.split
        groups = min(n_shards, n_kv_heads) if row.shape[0] == "kv_rows" else n_shards
        if split is not None and spec.shape[split] % groups:
            bad.append(f"{spec.name} {list(spec.shape)}")
            continue
        parts[spec.name] = [_part(spec, split, rank * groups // n_shards, groups) for rank in range(n_shards)]
    if bad:
        raise UsageError(f"--shards {n_shards}: {len(bad)} tensors do not divide into so many: {', '.join(bad)}")
    return parts


def _part(spec: TensorSpec, split: int | None, group: int, groups: int) -> Part:
    rows, columns = (spec.shape[0], spec.shape[1]) if len(spec.shape) > 1 else (1, spec.shape[0])
    if split is None:
        return 0, rows, 0, columns
    if split == 0 and len(spec.shape) > 1:
        return group * rows // groups, (group + 1) * rows // groups, 0, columns
    return 0, rows, group * columns // groups, (group + 1) * columns // groups


def _part_spec(spec: TensorSpec, part: Part) -> TensorSpec:
    rows, columns = part[1] - part[0], part[3] - part[2]
    return replace(spec, shape=(rows, columns) if len(spec.shape) > 1 else (rows * columns,))


def _place(file: str, offset: int, spec: TensorSpec, part: Part) -> Place:
    start_row, stop_row, start, stop = part
    return Place(file, offset, spec.dtype.row_nbytes(stop - start), start_row, stop_row, spec.dtype.row_nbytes(start))


def _placed(model: Model, family: Family, specs: Sequence[TensorSpec], output: Output) -> Placed:
    return meta_layout(model, family, specs, published_shards(model) if output.n_shards is None else output.n_shards)


META_WRITER = Writer("meta", holds_torch, meta_tensors, _placed)
