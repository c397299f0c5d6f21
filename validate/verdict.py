"""From what was measured of a candidate to its gates and its entry in the report."""

from __future__ import annotations

from .forward import CandidateRun
from .gates import Gate, drift_gates, finite_gate, special_tokens_gate, tensors_gate, tokenizer_gate
from .limits import default_limits
from .options import ValidateOptions
from .protocols import encode
from .question import Question, Subject
from .report import CandidateResult
from .weights import WeightsDrift, same_dtype


def judge(
    reference: Subject,
    candidate: Subject,
    asked: Question,
    weights: WeightsDrift,
    run: CandidateRun | None,
    options: ValidateOptions,
) -> CandidateResult:
    """Every gate of one candidate; `run` is None where its weights could not be run, and then a failed gate says why."""
    model = candidate.model
    gates: list[Gate] = [finite_gate(weights, run.broken if run else None), tensors_gate(weights)]
    gates += _tokenizer_gates(reference, candidate, asked)
    if run is not None:
        gates.append(run.config)
        gates += limit_gates(candidate, asked, run, same_dtype(reference.model, model), options)
    return CandidateResult(
        candidate.path,
        model.bits_per_weight,
        sum(tensor.nbytes for tensor in model.tensors.values()),
        run.drifts if run else (),
        run.layers if run else (),
        weights.tensors,
        tuple(gates),
        alone=run.alone if run else None,
    )


def limit_gates(
    candidate: Subject, asked: Question, run: CandidateRun, same: bool, options: ValidateOptions
) -> list[Gate]:
    """The gates on drift, a text each; `same`: the candidate is stored as the reference is, so next to nothing may change."""
    model = candidate.model
    limits = default_limits(model.bits_per_weight, model.parameters, same, options.table).overridden_by(options.limits)
    gates: list[Gate] = []
    for text, apart in zip(asked.evaluation.texts, run.drifts, strict=False):
        name = text.name if len(asked.parts) > 1 else None
        gates += drift_gates(apart, limits, text.chunks, name)
    return gates


def _tokenizer_gates(reference: Subject, candidate: Subject, asked: Question) -> list[Gate]:
    """The same ids of every text, the same special tokens, where there are tokenizers to ask."""
    ours, theirs = reference.model.tokenizer, candidate.model.tokenizer
    if theirs is None:
        return []
    gates = [
        tokenizer_gate(part.ids, encode(theirs, part.text.content), part.text.name if len(asked.parts) > 1 else None)
        for part in asked.parts
        if part.text.content is not None
    ]
    return gates if ours is None else [*gates, special_tokens_gate(ours, theirs)]
