"""A base and what was made from it -> the model that was meant: a Model like any other, merged while it is read.

    LoRA    weight + s * (B @ A), in float32, rounded once to the base's dtype       DoRA: each row then given its length
    delta   base + delta in the delta's dtype: float32 (Alpaca) or fp16 (Vicuna); rows that the base lacks start from the
            mean of its rows

Alpaca's recipe says what all values of the recovered model add up to (`published_sum`), and a run is held to it. Of an adapter
that changes the head of a model whose head is the embedding, peft's merge changes the embedding too, so that the merged model
is not the adapted one: it is refused.

Sources: peft (merge_and_unload), tatsu-lab/stanford_alpaca weight_diff.py, lm-sys/FastChat apply_delta.py; transformers 4.28.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import BF16, F16, F32, DType
from ..errors import ModelError
from ..formats.checkpoint import Bytes, StoredTensor
from ..kernels.low_rank import low_rank_rows
from ..kernels.scheme import cast_scheme, decode
from .adapter import Adapter, Change, read_adapter
from .architecture import family_by
from .assemble import HEAD
from .meta_shards import lazy
from .model import LazyTensor, Model
from .open import open_model
from .options import OpenOptions
from .published_sum import published_sum
from .side_files import WITHOUT_VOCABULARY
from .tokenizer_folder import read_hugging_face

Rows = NDArray[np.float32]


def merge_lora(base: Path, adapter: Path, options: OpenOptions) -> Model:
    """The merged model of two folders; the adapter's tokenizer where its vocabulary is another than the base's."""
    model = open_model(base, options)
    merged = with_adapter(model, read_adapter(adapter))
    if options.tokenizer is not None or merged.config["vocab_size"] == model.config["vocab_size"]:
        return merged
    tokenizer = None if options.skip_tokenizer else read_hugging_face(adapter, merged.config)
    if tokenizer is None:
        return merged
    kept = {name: content for name, content in model.side_files.items() if name in WITHOUT_VOCABULARY}
    return replace(merged, tokenizer=tokenizer, side_files=kept)


@dataclass(frozen=True)
class SumCheck:
    """Whether to hold a merged model against the sum that its recipe publishes; `expected` is another than Alpaca's."""

    wanted: bool = True
    expected: float | None = None


def merge_delta(base: Path, delta: Path, options: OpenOptions, check: SumCheck | None = None) -> Model:
    """The sum of two models; facts said by hand are the base's, for the delta's files are a Hugging Face folder.

    A run of it ends with an InputError where its values do not add up to what `check` expects.
    """
    original = open_model(base, replace(options, tokenizer=None, skip_tokenizer=True))
    change = open_model(delta, OpenOptions(tokenizer=options.tokenizer, skip_tokenizer=options.skip_tokenizer))
    merged = with_delta(original, change)
    check = check or SumCheck()
    return replace(merged, expected_sum=published_sum(original, merged, check.expected)) if check.wanted else merged


def with_adapter(base: Model, adapter: Adapter) -> Model:
    """`base` with the adapter's changes in it. ModelError lists every change that has no place in it or does not fit."""
    tensors = dict(base.tensors)
    config = dict(base.config)
    notes = [*base.notes]
    names = {f"{module}.weight" for module in adapter.changes} | set(adapter.replacements)
    tied = bool(config.get("tie_word_embeddings"))
    if tied and HEAD in (f"{module}.weight" for module in adapter.changes):
        raise ModelError(
            f"{adapter.path}: changes the head, which is the embedding in this model: merged, the embedding would change too "
            "(as peft's merge_and_unload does) and the model would not be the adapted one: give the base a head of its own "
            "first (lm_head.weight, and tie_word_embeddings false)"
        )
    apart = (name for name in adapter.replacements if name.removesuffix(".weight") not in adapter.changes)
    embedding = _embedding_name(base)
    if tied and not {embedding, HEAD}.isdisjoint(apart):
        tensors[HEAD] = replace(tensors[embedding], name=HEAD)
        config["tie_word_embeddings"] = False
        notes.append("the adapter gives embedding and head weights of their own: they are no longer tied")
    lacking = sorted(name for name in names if name not in tensors)
    if lacking:
        raise ModelError(
            f"{adapter.path}: changes {len(lacking)} tensors that the base does not have: {', '.join(lacking[:8])}: "
            "it was made for another model"
        )
    for name, stored in adapter.replacements.items():
        tensors[name] = _replacement(tensors[name], stored, embedding)
    for module, change in adapter.changes.items():
        _apply(tensors, module, change, adapter.path)
    _resize(tensors, embedding, config, adapter.path)
    return replace(base, tensors=tensors, config=config, files=(*base.files, *_files(adapter)), notes=tuple(notes))


def _embedding_name(model: Model) -> str:
    return family_by("name", model.architecture, model.architecture).embedding


def _is_vocabulary(name: str, embedding: str) -> bool:
    """True for the two tensors whose rows are the vocabulary's pieces."""
    return name in (HEAD, embedding)


def _files(adapter: Adapter) -> tuple[Path, ...]:
    return tuple(sorted(entry for entry in adapter.path.iterdir() if entry.is_file()))


def _replacement(base: LazyTensor, stored: StoredTensor, embedding: str) -> LazyTensor:
    """A tensor of the adapter in the base's place and dtype; only a vocabulary may have another number of rows."""
    if stored.shape != base.shape and (not _is_vocabulary(base.name, embedding) or stored.shape[1:] != base.shape[1:]):
        raise ModelError(f"{base.name}: the adapter's is {list(stored.shape)}, the base's {list(base.shape)}")
    tensor = replace(lazy(stored), name=base.name)
    return (
        tensor
        if tensor.dtype == base.dtype
        else _changed(replace(tensor, dtype=base.dtype), tensor, lambda rows, *_: rows)
    )


def _apply(tensors: dict[str, LazyTensor], module: str, change: Change, path: Path) -> None:
    base = tensors[f"{module}.weight"]
    if base.dtype not in (F32, F16, BF16):
        raise ModelError(f"{base.name}: is {base.dtype}: merge into the original weights, then quantize")
    rows, columns = base.matrix_shape
    if change.a is not None and change.b is not None:
        wanted, factors = (change.b.shape[0], change.a.shape[1]), _linear(change)
    elif change.embedding_a is not None and change.embedding_b is not None:
        wanted, factors = (change.embedding_a.shape[1], change.embedding_b.shape[0]), _embedding(change, base.dtype)
    else:
        raise ModelError(f"{path}: {module}: a factor is missing")
    if wanted != (rows, columns):
        raise ModelError(f"{path}: {module}: the change is {list(wanted)}, the base's weight {[rows, columns]}")
    tensors[base.name] = _changed(base, base, factors)
    if change.bias is not None:
        _apply_bias(tensors, module, change, change.bias, path)


def _apply_bias(tensors: dict[str, LazyTensor], module: str, change: Change, stored: StoredTensor, path: Path) -> None:
    name = f"{module}.bias"
    if name not in tensors or tensors[name].shape != stored.shape:
        raise ModelError(f"{path}: {module}: has a bias {list(stored.shape)}, the base has none of that shape")
    scale = np.float32(change.scale)
    tensors[name] = _changed(tensors[name], tensors[name], lambda rows, *_: rows + _loaded(stored) * scale)


Merge = Callable[[Rows, int, int], Rows]


def _changed(kept: LazyTensor, base: LazyTensor, merge: Merge) -> LazyTensor:
    """`kept`'s name and dtype; rows of `base` as float32 through `merge(rows, start, stop)`, rounded once."""
    scheme = cast_scheme(kept.dtype)

    def read(start: int, stop: int) -> Bytes:
        rows = merge(base.read_float32(start, stop), start, stop)
        return scheme.encode(np.ascontiguousarray(rows, np.float32), None)[""]

    return replace(kept, read=read, packed=None)


@lru_cache(maxsize=16)
def _loaded(stored: StoredTensor) -> Rows:
    """A factor whole, as float32. A few are kept: slabs of one weight come one after another."""
    tensor = lazy(stored)
    return tensor.load_float32()


def _linear(change: Change) -> Merge:
    scale = np.float32(change.scale)
    a, b, magnitude = change.a, change.b, change.magnitude

    def merge(rows: Rows, start: int, stop: int) -> Rows:
        if a is None or b is None:
            return rows
        merged: Rows = rows + low_rank_rows(_loaded(b)[start:stop], _loaded(a)) * scale
        if magnitude is None:
            return merged
        length = np.sqrt(np.einsum("ij,ij->i", merged, merged, dtype=np.float64)).astype(np.float32)
        factor = _loaded(magnitude).reshape(-1)[start:stop] / length
        scaled: Rows = factor[:, None] * merged
        return scaled

    return merge


def _embedding(change: Change, dtype: DType) -> Merge:
    """The change is rounded to the base's dtype before it is added, as peft does for embeddings."""
    scale = np.float32(change.scale)
    a, b = change.embedding_a, change.embedding_b

    def merge(rows: Rows, start: int, stop: int) -> Rows:
        if a is None or b is None:
            return rows
        # (B @ A)^T row by row: the sum over the rank runs in the same order either way
        added = (
            low_rank_rows(np.ascontiguousarray(_loaded(a).T[start:stop]), np.ascontiguousarray(_loaded(b).T)) * scale
        )
        return rows + decode(dtype, cast_scheme(dtype).encode(added, None)[""])

    return merge


def _resize(tensors: Mapping[str, LazyTensor], embedding: str, config: dict[str, Any], path: Path) -> None:
    """The vocabulary's size is the embedding's rows; ModelError where the head has another number of them."""
    n_rows = tensors[embedding].shape[0]
    if HEAD in tensors and tensors[HEAD].shape[0] != n_rows:
        raise ModelError(f"{path}: the embedding has {n_rows} rows, the head {tensors[HEAD].shape[0]}")
    config["vocab_size"] = n_rows


def with_delta(base: Model, delta: Model) -> Model:
    """base + delta, tensor by tensor, in the delta's dtype; config and tokenizer are the delta's.

    ModelError lists what one of the two lacks, and shapes that differ in more than rows of the vocabulary.
    """
    differing = sorted(set(base.tensors) ^ set(delta.tensors))
    if differing:
        raise ModelError(
            f"{delta.files[0].parent}: {len(differing)} tensors are in the base or the delta alone: "
            f"{', '.join(differing[:8])}: it was made from another model"
        )
    embedding = _embedding_name(delta)
    wrong = [
        f"{name} is {list(tensor.shape)}, the base's {list(base.tensors[name].shape)}"
        for name, tensor in delta.tensors.items()
        if not _fits(name, tensor, base.tensors[name], embedding)
    ]
    if wrong:
        raise ModelError(f"{delta.files[0].parent}: does not fit the base: {'; '.join(wrong[:8])}")
    odd = [str(tensor.dtype) for tensor in delta.tensors.values() if tensor.dtype not in (F32, F16)]
    if odd:
        raise ModelError(
            f"{delta.files[0].parent}: is {odd[0]}: deltas are float32 (Alpaca) or fp16 (Vicuna), which says how to add"
        )
    tensors = {name: _sum(base.tensors[name], tensor) for name, tensor in delta.tensors.items()}
    grown = delta.tensors[embedding].shape[0] - base.tensors[embedding].shape[0]
    notes = [*delta.notes, f"added to the base in {delta.matrix_dtype}, as its recipe was"]
    if grown:
        notes.append(f"{grown} rows more than the base's vocabulary: they start from the mean of the base's rows")
    return replace(delta, tensors=tensors, files=(*base.files, *delta.files), notes=tuple(notes))


def _fits(name: str, tensor: LazyTensor, base: LazyTensor, embedding: str) -> bool:
    if _is_vocabulary(name, embedding) and len(tensor.shape) == len(base.shape) == 2:
        return tensor.shape[1] == base.shape[1] and tensor.shape[0] >= base.shape[0]
    return tensor.shape == base.shape


def _sum(base: LazyTensor, delta: LazyTensor) -> LazyTensor:
    """Both rounded to the delta's dtype, added, and rounded to it again; float32's sum of two fp16 is rounded once."""
    scheme = cast_scheme(delta.dtype)
    own_rows = base.matrix_shape[0]

    @lru_cache(maxsize=1)
    def mean() -> Rows:
        total, height = np.zeros(base.matrix_shape[1]), 4096
        for start in range(0, own_rows, height):
            total += base.read_float32(start, min(own_rows, start + height)).sum(axis=0, dtype=np.float64)
        return (total / own_rows).astype(np.float32)[None]

    def read(start: int, stop: int) -> Bytes:
        rows = base.read_float32(min(start, own_rows), min(stop, own_rows))
        if stop > own_rows:
            rows = np.concatenate((rows, np.repeat(mean(), stop - max(start, own_rows), axis=0)))
        rounded = decode(delta.dtype, scheme.encode(np.ascontiguousarray(rows), None)[""])
        return scheme.encode(rounded + delta.read_float32(start, stop), None)[""]

    return replace(delta, read=read, packed=None)
