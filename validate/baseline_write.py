"""Writes a saved reference (baseline.py) after the reference's own pass, through a transaction: whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.headers import header_sha256
from ..convert.model import LazyTensor
from ..dtypes import DTYPES, F32, F64
from ..errors import ModelError
from ..formats.checkpoint import TensorSpec
from ..formats.safetensors import safetensors_layout
from ..formats.target import check_free_space, check_target
from ..formats.transaction import Transaction
from .baseline import FACTS, HEAD, HIDDEN, IDS, NLL, TOKENIZER_FACTS, VERSION
from .drift import TokenScores, perplexity
from .question import Question, Subject
from .report import NoiseFloor
from .stream import Stream

SLAB = 32 << 20  # bytes of the head copied at once

# (the reference after its last layer, its scores, the noise floor) -> written
Saver = Callable[[Stream, Sequence[TokenScores], NoiseFloor | None], None]


def saver(target: Path, force: bool, reference: Subject, asked: Question, sources: Sequence[Path]) -> Saver:
    """What will write `target`, asked before any work: UsageError where it cannot be written or is one of `sources`."""
    check_target(target, folder=False, force=force, sources=sources)
    width = reference.model.config.get("hidden_size")
    positions = sum(len(window.scored[1]) for window in asked.windows)
    check_free_space(target.parent, 4 * positions * width if isinstance(width, int) else 0)

    def save(stream: Stream, scores: Sequence[TokenScores], floor: NoiseFloor | None) -> None:
        facts = _facts(reference, stream, asked, scores, floor)
        _write(target, force, sources, stream, asked, scores, facts)

    return save


def _facts(
    reference: Subject, stream: Stream, asked: Question, scores: Sequence[TokenScores], floor: NoiseFloor | None
) -> dict[str, Any]:
    model, how = reference.model, asked.evaluation.protocol
    files = [{"file": f.name, "bytes": f.stat().st_size, "header_sha256": header_sha256(f)} for f in model.files]
    texts = [
        {
            "name": text.name,
            "chunks": text.chunks,
            "text_sha256": text.text_sha256,
            "token_ids_sha256": text.token_ids_sha256,
            "perplexity": _number(perplexity(part)),
        }
        for text, part in zip(asked.evaluation.texts, asked.by_text(scores), strict=True)
    ]
    tokenizer = model.tokenizer
    return {
        "version": VERSION,
        "smelt": version("smelt"),
        "reference": {"path": reference.path, "files": files},
        "protocol": {"name": how.name, "n_ctx": how.n_ctx, "stride": how.stride},
        "texts": texts,
        "noise_floor": None if floor is None else asdict(floor),
        "tokenizer": None if tokenizer is None else {key: getattr(tokenizer, key) for key in TOKENIZER_FACTS},
        "model": {
            "architecture": model.architecture,
            "config": model.config,
            "source": model.source,
            "layer_returns": stream.replay.returns,
            "tensors": {
                name: [list(t.shape), t.dtype.name, *(() if t.packed is None else (t.packed.scheme, t.packed.nbytes))]
                for name, t in model.tensors.items()
            },
        },
    }


def _number(value: float) -> float | None:
    """JSON has no word for infinity."""
    return value if np.isfinite(value) else None


def _write(
    target: Path,
    force: bool,
    sources: Sequence[Path],
    stream: Stream,
    asked: Question,
    scores: Sequence[TokenScores],
    facts: Mapping[str, Any],
) -> None:
    head = {f"{HEAD}{name}": stream.model.tensors[name] for name in head_names(stream)}
    counts = [len(window.scored[1]) for window in asked.windows]
    width = stream.states[0].shape[-1]
    small = {NLL: (F64, np.array([score.nll.mean() for score in scores], "<f8"))}
    for index, part in enumerate(asked.parts):
        small[f"{IDS}{index}"] = (DTYPES["I32"], np.array(part.ids, "<i4"))
    specs = [TensorSpec(HIDDEN, (sum(counts), width), F32)]
    specs += [TensorSpec(name, values.shape, dtype) for name, (dtype, values) in small.items()]
    specs += [stored_spec(name, tensor) for name, tensor in head.items()]
    try:
        text = json.dumps(facts, allow_nan=False)
    except ValueError as error:
        raise ModelError(f"{target}: the model's config holds what JSON has no word for: {error}") from None
    layout = safetensors_layout(specs, {FACTS: text})
    name = target.name
    with Transaction(target, {name: layout}, folder=False, force=force, sources=sources) as transaction:
        for key, (_, values) in small.items():
            transaction.write(name, layout.slots[key], values.tobytes())
        offset = layout.slots[HIDDEN]
        for index, window in enumerate(asked.windows):
            first, targets = window.scored
            state = stream.states[index][0, first : first + len(targets)].contiguous().cpu().numpy()
            transaction.write(name, offset, state.astype("<f4", copy=False).tobytes())
            offset += state.nbytes
        for key, tensor in head.items():
            _copy(transaction, name, layout.slots[key], tensor)
        transaction.commit()


def head_names(stream: Stream) -> list[str]:
    """The tensors that turn final hidden states into logits, and what the network needs beside its layers to run at all."""
    replay = stream.replay
    return [*replay.outer_names, *(name for name in (replay.head_name, replay.head_bias_name) if name is not None)]


def stored_spec(name: str, tensor: LazyTensor) -> TensorSpec:
    """How a tensor of any type lies in a safetensors file."""
    if not tensor.dtype.is_block:
        return TensorSpec(name, tensor.shape, tensor.dtype)
    rows, columns = tensor.matrix_shape
    return TensorSpec(name, (rows, tensor.dtype.row_nbytes(columns)), DTYPES["U8"])


def _copy(transaction: Transaction, name: str, offset: int, tensor: LazyTensor) -> None:
    rows, columns = tensor.matrix_shape
    row_nbytes = tensor.dtype.row_nbytes(columns)
    step = max(1, SLAB // max(1, row_nbytes))
    for start in range(0, rows, step):
        transaction.write(name, offset + start * row_nbytes, tensor.read(start, min(start + step, rows)))
