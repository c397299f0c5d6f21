"""metaseq's files of one model -> whole tensors under metaseq's names, still unread.

    reshard.pt, restored.pt                       one file
    reshard-model_part-0.pt ... -7.pt             model-parallel parts: each has some rows, or columns, of every matrix
    checkpoint_last-model_part-0-shard0.pt ...    shards of a part: each has a run of the part's flattened weights

    {"model": {name: tensor}, "cfg": ..., "args": ..., "shard_metadata": ...}      cfg and args are inert stubs

    flat_param_0   | fc1.weight | fc1.bias | ... |     the tensors of a module one after another; shard_metadata says
                   shard 0  ~~~~|~~~~~~~~ shard 1      which, in what order; each shard ends in `padding`
    qkv_proj       | k rows | v rows | q rows |        of its part

Source: facebookresearch/metaseq (reshard_mp, reshard_fsdp, stitch_fsdp_ckpt), fairscale (FlattenParamsWrapper).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import Shape
from ..errors import FormatError, InputError, ModelError, quoted
from ..formats.checkpoint import Bytes, Checkpoint, StoredTensor
from ..formats.pth import open_pth
from ..formats.torch_records import InertObject, Policy
from .layouts import join_columns, join_rows, part_of
from .meta_shards import lazy
from .model import LazyTensor

PART = re.compile(r"(?P<stem>.+?)(?:-model_part-(?P<part>\d{1,4}))?(?:-shard(?P<shard>\d{1,5}))?\.pt")
ROWS = re.compile(r"decoder\.(embed_tokens\.weight|layers\.\d+\.(fc1|self_attn\.[kvq]_proj)\.(weight|bias))")
COLUMNS = re.compile(r"decoder\.layers\.\d+\.(fc2|self_attn\.out_proj)\.weight")
FUSED = re.compile(r"(.+\.self_attn\.)qkv_proj(\.weight|\.bias)")
NO_WEIGHTS = re.compile(r"decoder\.(version|embed_positions\._float_tensor)")
# what a checkpoint of metaseq names beside tensors; it stays two strings
POLICY = Policy(
    (
        *("argparse.Namespace", "omegaconf", "metaseq", "fairseq", "typing", "enum", "pathlib", "numpy", "torch.Size"),
        *("collections.defaultdict", "collections.deque", "collections.Counter", "datetime", "_codecs.encode"),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("object", "set", "dict", "list")),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("int", "float", "str", "bool")),
        *(f"__builtin__.{name}" for name in ("long", "unicode")),  # int and str, in a pickle of protocol 2
        *("copyreg._reconstructor", "copy_reg._reconstructor", "torch.device"),
    )
)


@dataclass(frozen=True)
class MetaseqParts:
    """The files in order, the whole tensors, and what the first file says of the model; `n_parts` files divide it."""

    files: tuple[Path, ...]
    tensors: dict[str, LazyTensor]
    settings: dict[str, Any]
    n_parts: int


def is_metaseq(folder: Path) -> bool:
    """True for a folder with .pt files, other than the row scales of Meta's FP8 models."""
    return bool(_candidates(folder))


def _candidates(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if "_scales_" not in path.name)


def part_files(path: Path) -> list[list[Path]]:
    """The files of the model at `path`, a folder or one of them: for each part its shards. InputError for gaps, and for
    a folder with several models."""
    found: dict[str, dict[tuple[int, int], Path]] = {}
    for file in _candidates(path if path.is_dir() else path.parent):
        if (m := PART.fullmatch(file.name)) is not None:
            found.setdefault(m["stem"], {})[int(m["part"] or 0), int(m["shard"] or 0)] = file
    if path.is_file():
        found = {stem: files for stem, files in found.items() if path in files.values()}
    if len(found) != 1:
        raise InputError(
            f"{path}: wanted the .pt files of one model, got {', '.join(found) or 'none'}: name one of them"
        )
    ((stem, files),) = found.items()
    n_parts, n_shards = (max(key[axis] for key in files) + 1 for axis in (0, 1))
    places = ((part, shard) for part in range(n_parts) for shard in range(n_shards))
    if (gap := next((place for place in places if place not in files), None)) is not None:
        raise InputError(
            f"{path}: {stem} has {n_parts} parts of {n_shards} shards, and {n_parts * n_shards - len(files)} of these files "
            f"are missing, first part {gap[0]}, shard {gap[1]}: the download is incomplete"
        )
    return [[files[part, shard] for shard in range(n_shards)] for part in range(n_parts)]


def open_parts(path: Path) -> MetaseqParts:
    """Every file's headers. FormatError for what metaseq did not write, ModelError where the parts are not of one model."""
    files = part_files(path)
    opened = [[open_pth(file, POLICY, inside="model") for file in shards] for shards in files]
    parts = [_unfused(_unflattened(shards)) for shards in opened]
    names = list(parts[0])
    for shards, part in zip(files, parts, strict=True):
        if different := sorted(set(part) ^ set(names)):
            raise ModelError(f"{shards[0]}: does not hold the same tensors as {files[0][0].name}: {different[0]}")
    tensors = {name: _joined(name, [part[name] for part in parts]) for name in names}
    every = tuple(file for shards in files for file in shards)
    return MetaseqParts(every, tensors, settings_of(opened[0][0].metadata), len(files))


def settings_of(metadata: Mapping[str, object]) -> dict[str, Any]:
    """What `cfg["model"]`, else `args`, says of the model, as plain values; empty where the file has neither."""
    cfg = plain(metadata.get("cfg"))
    if isinstance(cfg, dict) and isinstance(cfg.get("model"), dict):
        return dict(cfg["model"])
    args = plain(metadata.get("args"))
    return args if isinstance(args, dict) else {}


def plain(value: object) -> object:
    """Namespace -> its fields, omegaconf's containers and nodes -> what they hold, a value of an enum -> itself."""
    if isinstance(value, InertObject) and isinstance(value.state, dict):
        state = value.state
        if value.made_by.module.startswith("omegaconf"):
            return plain(state.get("_content", state.get("_val")))
        return plain(state)
    if isinstance(value, InertObject) and len(value.arguments) == 1:
        return plain(value.arguments[0])
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _unflattened(shards: Sequence[Checkpoint]) -> dict[str, LazyTensor]:
    """The tensors of one part, cut out of the flat ones where it has such."""
    first = shards[0]
    flat = {name for name in first.tensors if "flat_param" in name}
    tensors = {name: lazy(tensor) for name, tensor in first.tensors.items() if name not in flat}
    if not flat:
        if len(shards) > 1:
            raise ModelError(f"{first.files[0]}: is one of {len(shards)} shards, yet holds no flattened weights")
        return tensors
    told = [_flat_params(shard) for shard in shards]
    if different := flat ^ set(told[0]):
        raise FormatError(f"{first.files[0]}: shard_metadata and the flattened weights disagree about {min(different)}")
    for name, (path, params) in told[0].items():
        runs = [_without_padding(shard, name, own.get(name)) for shard, own in zip(shards, told, strict=True)]
        tensors |= _cut(path, name, params, runs)
    return tensors


def _flat_params(shard: Checkpoint) -> dict[str, tuple[str, dict[str, Any]]]:
    """{name of a flat parameter: (its module's path, what shard_metadata says of it)}; FormatError without that."""
    metadata = shard.metadata.get("shard_metadata")
    entries = metadata.get("param_metadata") if isinstance(metadata, dict) else None
    if not isinstance(entries, list):
        raise FormatError(
            f"{shard.files[0]}: its weights are flattened and it has no shard_metadata, so nothing says where each begins: "
            "convert it with metaseq's convert_to_singleton first"
        )
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for entry in entries:
        inside = entry.get("params") if isinstance(entry, dict) else None
        if not isinstance(inside, dict) or not all(isinstance(params, dict) for params in inside.values()):
            raise FormatError(f"{shard.files[0]}: shard_metadata is not of param_metadata with params")
        path = str(entry.get("fsdp_path") or "")
        found |= {_full(path, name): (path, params) for name, params in inside.items()}
    return found


def _full(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _cut(path: str, name: str, params: Mapping[str, Any], runs: Sequence[StoredTensor]) -> dict[str, LazyTensor]:
    """The tensors that one flat parameter holds; FormatError where their sizes do not add up to it."""
    where = f"{runs[0].file.path}: {name}"
    names, shapes = params.get("names"), params.get("shapes")
    if not isinstance(names, (list, tuple)) or not isinstance(shapes, (list, tuple)) or len(names) != len(shapes):
        raise FormatError(f"{where}: shard_metadata gives no names and shapes for it")
    sizes = [_shape(shape, where) for shape in shapes]
    run = join_rows(name, [lazy(one) for one in runs])
    if sum(map(prod, sizes)) != run.shape[0]:
        raise FormatError(f"{where}: has {run.shape[0]} elements, shard_metadata says {sum(map(prod, sizes))}")
    found, begin = {}, 0
    for inner, shape in zip(names, sizes, strict=True):
        found[_full(path, inner)] = _of_run(run, _full(path, inner), shape, begin)
        begin += prod(shape)
    return found


def _of_run(run: LazyTensor, name: str, shape: Shape, begin: int) -> LazyTensor:
    """The tensor of `shape` whose first element is row `begin` of `run`, a column of elements."""
    columns = shape[-1]

    def read(start_row: int, stop_row: int) -> Bytes:
        raw = run.read(begin + start_row * columns, begin + stop_row * columns)
        return np.ascontiguousarray(raw).reshape(stop_row - start_row, run.dtype.row_nbytes(columns))

    return LazyTensor(name, shape, run.dtype, read)


def _shape(value: object, where: str) -> Shape:
    """torch.Size is a stub whose only argument is the tuple."""
    sizes = value.arguments[0] if isinstance(value, InertObject) and value.arguments else value
    if not isinstance(sizes, (tuple, list)) or not all(type(size) is int and size >= 0 for size in sizes) or not sizes:
        raise FormatError(f"{where}: shard_metadata gives {quoted(sizes)} as a shape")
    return tuple(sizes)


def _without_padding(shard: Checkpoint, name: str, told: tuple[str, dict[str, Any]] | None) -> StoredTensor:
    """One shard's run of the flat parameter `name`, less its padding, as a column."""
    tensor = shard.tensors.get(name)
    if tensor is None or told is None or len(tensor.shape) != 1 or tensor.strides is not None:
        raise FormatError(f"{shard.files[0]}: {name} is missing or no vector, unlike in the first shard")
    padding = told[1].get("padding", 0)
    if type(padding) is not int or not 0 <= padding <= tensor.shape[0]:
        raise FormatError(f"{shard.files[0]}: {name} has a padding of {quoted(padding)}")
    return replace(tensor, shape=(tensor.shape[0] - padding, 1))


def _unfused(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """k, v and q, which lie in that order in a fused projection, under their own names; buffers left out."""
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        if NO_WEIGHTS.fullmatch(name):
            continue
        if (m := FUSED.fullmatch(name)) is None:
            found[name] = tensor
            continue
        rows, odd = divmod(tensor.shape[0], 3)
        if odd:
            raise ModelError(f"{name}: {tensor.shape[0]} rows are not keys, values and queries of one size")
        shape = (rows, *tensor.shape[1:])
        for number, which in enumerate("kvq"):
            own = f"{m[1]}{which}_proj{m[2]}"
            found[own] = part_of(tensor, own, shape, number * prod(shape))
    return found


def _joined(name: str, parts: Sequence[LazyTensor]) -> LazyTensor:
    """What every part holds whole is the first part's."""
    if ROWS.fullmatch(name):
        return join_rows(name, parts)
    return join_columns(name, parts) if COLUMNS.fullmatch(name) else parts[0]
