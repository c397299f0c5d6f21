"""Candidates against a reference that is not run: one that was saved (baseline.py), or another program's log-probabilities.

    token ids of the file -> each candidate's layers -> head in slices, against what the file says -> gates

Of the reference there is only what it said of each scored token. Its tensors and layers are not there to compare with: the
gates that need them say so and do not fail. A candidate that cannot be run fails, as against a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ..convert.model import LazyTensor
from ..convert.progress import Progress, silent
from ..errors import UsageError
from ..formats.sniff import is_saved_reference, sniff
from .baseline_read import open_baseline
from .drift import TokenScores, perplexity
from .forward import CandidateRun, Seen, drifts_of, follow, open_stream
from .gates import Gate, finite_gate, not_measured
from .head import Speaker, head_of, score_against
from .llama_base import open_llama_base
from .options import ValidateOptions
from .question import Question, Subject
from .replay import Replay
from .report import CandidateResult, NoiseFloor, Reference, ValidationReport
from .setting import Setting, open_setting
from .stream import Stream
from .texts import Text
from .verdict import limit_gates
from .weights import TensorDrift, WeightsDrift, count_nonfinite, listed, with_head

SLAB = 1 << 19  # weights looked at at once


class Recorded(Protocol):
    """What a reference said, in a file."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def noise_floor(self) -> NoiseFloor | None:
        """As it was measured when it was recorded."""

    @property
    def entry(self) -> Reference:
        """As it stands in a report, perplexities aside."""

    def ask(self, texts: Sequence[Text], candidates: Sequence[Subject], options: ValidateOptions, /) -> Question:
        """The question that it answered. UsageError where `texts` or `options` ask another."""

    def speaker(self, asked: Question, device: torch.device, /) -> Speaker:
        """What it says of the windows of `asked`."""

    def problems(self, candidate: Subject, /) -> tuple[str, ...]:
        """Why a candidate's tensors cannot be run against it, a line each."""

    def same_dtype(self, candidate: Subject, /) -> bool:
        """True where the candidate's matrices are stored as the reference's were."""

    def tokenizer_gates(self, candidate: Subject, asked: Question, /) -> list[Gate]:
        """What can be said of the candidate's tokenizer."""

    def config_gate(self, replay: Replay, /) -> Gate:
        """What can be said of the facts that the candidate's `replay` computes with."""

    def check(self, asked: Question, scores: Sequence[TokenScores], /) -> None:
        """FormatError where what it says is not what was recorded."""


def open_recorded(path: Path) -> Recorded | None:
    """A reference that is not run, by the file's first bytes; None for what may be a model. FormatError where it is damaged."""
    if not path.is_file():
        return None
    if sniff(path) == "log-probabilities":
        return open_llama_base(path)
    return open_baseline(path) if is_saved_reference(path) else None


class _Breaks:
    """Watches the streams for the first layer that gives NaN or infinity."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.streams = streams
        self.broken: dict[int, str] = {}

    def seen(self) -> Seen:
        """What a journal keeps."""
        return Seen([], self.broken, [])

    def resume(self, seen: Seen) -> None:
        """Go on from there."""
        self.broken = seen.broken

    def __call__(self, index: int, layer: int, bad: int | None) -> bool:
        """As `stream.Observer`."""
        if bad is not None:
            count = self.streams[index].n_layers
            self.broken[index] = f"layer {layer} of {count} gives NaN or infinity in chunk {bad}"
        return bad is None


def validate_recorded(
    reference: Recorded,
    candidates: Sequence[Subject],
    texts: Sequence[Text] = (),
    options: ValidateOptions | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """How far each candidate is from what was recorded of a reference; as `run.validate` where the reference runs."""
    options = options or ValidateOptions()
    if not candidates:
        raise UsageError("nothing to validate: name at least one candidate")
    if options.save_reference is not None:
        raise UsageError(f"--save-reference: {reference.path} is a recorded reference already: give the model itself")
    if options.attribute:
        raise UsageError(
            f"--attribute: {reference.path} holds no layers to put a candidate's into: give the model itself"
        )
    asked = reference.ask(texts, candidates, options)
    status = reference.path.stat()
    command = f"validate against {reference.path.name} of {status.st_size} bytes, {status.st_mtime_ns}"
    with open_setting(command, candidates, asked, options, progress) as setting:
        weights = setting.journal.recall(
            "weights",
            list[WeightsDrift],
            lambda: [_look_over(reference, candidate, options.threads) for candidate in candidates],
        )
        runnable = [index for index, found in enumerate(weights) if found.is_runnable]
        said, runs = _run(reference, [candidates[index] for index in runnable], asked, options, setting)
    by_index = dict(zip(runnable, runs, strict=True))
    results = tuple(
        _judge(reference, candidate, asked, weights[index], by_index.get(index), options)
        for index, candidate in enumerate(candidates)
    )
    entry = replace(reference.entry, perplexities=said)
    why = "no generations: a recorded reference holds no weights to write with; give the model itself"
    evaluation = setting.said(asked.evaluation)
    evaluation = replace(evaluation, notes=(*evaluation.notes, *((why,) if options.generate else ())))
    return ValidationReport(evaluation, entry, results, reference.noise_floor if options.noise_floor else None)


def _look_over(reference: Recorded, candidate: Subject, threads: int) -> WeightsDrift:
    """A candidate's tensors by themselves: which hold NaN or infinity, and what keeps them from being run."""

    def look(item: tuple[str, LazyTensor]) -> TensorDrift | None:
        name, tensor = item
        rows, columns = tensor.matrix_shape
        step = max(1, SLAB // max(1, columns))
        count = infinite = 0
        for start in range(0, rows, step):
            values = tensor.read_float32(start, min(start + step, rows))
            found = count_nonfinite(values)
            count, infinite = count + found, infinite + (int(np.isinf(values).sum()) if found else 0)
        if not count:
            return None
        bits, size = tensor.bits_per_weight, prod(tensor.shape)
        return TensorDrift(name, str(tensor.dtype), bits, False, count, n_infinite=infinite, n_weights=size)

    with ThreadPoolExecutor(threads) as pool:
        damaged = [drift for drift in pool.map(look, with_head(candidate.model).items()) if drift is not None]
    return WeightsDrift(tuple(damaged), reference.problems(candidate))


def _run(
    reference: Recorded,
    candidates: Sequence[Subject],
    asked: Question,
    options: ValidateOptions,
    setting: Setting,
) -> tuple[tuple[float, ...], list[CandidateRun]]:
    """The reference's perplexities, and each candidate's pass; every tensor must be there and finite."""
    if not candidates:
        return (), []
    windows = asked.windows
    scored = [window.scored for window in windows]
    streams = [open_stream(subject, [window.tokens for window in windows], setting) for subject in candidates]
    depths = sorted({stream.n_layers for stream in streams})
    if len(depths) > 1:
        raise UsageError(f"the candidates have {' and '.join(map(str, depths))} layers: validate them one at a time")
    watched = _Breaks(streams)
    follow(streams, watched, setting)
    whole = [index for index in range(len(streams)) if index not in watched.broken]
    speaker = reference.speaker(asked, setting.device)
    ours, *theirs = setting.journal.recall(
        "scores",
        list[list[TokenScores]],
        lambda: score_against(
            speaker, [head_of(streams[index]) for index in whole], scored, options.slice_rows, setting.parts.head
        ),
    )
    reference.check(asked, ours)
    scores = dict(zip(whole, theirs, strict=True))
    runs = []
    for index, stream in enumerate(streams):
        broken, found = watched.broken.get(index), scores.get(index)
        if found is not None and not all(window.is_finite for window in found):
            broken = "the output head gives NaN or infinity"
        drifts = () if broken is not None or found is None else drifts_of(asked, ours, found, options)
        runs.append(CandidateRun(drifts, (), reference.config_gate(stream.replay), broken))
    return tuple(perplexity(part) for part in asked.by_text(ours)), runs


def _judge(
    reference: Recorded,
    candidate: Subject,
    asked: Question,
    weights: WeightsDrift,
    run: CandidateRun | None,
    options: ValidateOptions,
) -> CandidateResult:
    """As `verdict.judge`, with what there is to judge by."""
    gates = [finite_gate(weights, run.broken if run else None), _tensors_gate(reference, weights)]
    gates += reference.tokenizer_gates(candidate, asked)
    if run is not None:
        gates.append(run.config)
        gates += limit_gates(candidate, asked, run, reference.same_dtype(candidate), options)
    model = candidate.model
    nbytes = sum(tensor.nbytes for tensor in model.tensors.values())
    drifts = run.drifts if run else ()
    return CandidateResult(candidate.path, model.bits_per_weight, nbytes, drifts, (), weights.tensors, tuple(gates))


def _tensors_gate(reference: Recorded, weights: WeightsDrift) -> Gate:
    if weights.problems:
        return Gate("tensors", None, None, False, listed(weights.problems))
    return not_measured("tensors", f"{reference.path.name} holds no weights to compare these with")
