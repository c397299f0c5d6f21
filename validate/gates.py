"""How much drift is too much: a table, by bits per weight of the candidate's matrices.

A gate passes where the whole interval does: the upper end of perplexity drift and KLD, the lower end of top-1 agreement
("not significantly different" is no pass). Levels: about twice what llama.cpp's types reach on LLaMA-2-7B (its README:
Q8_0 +0.07 %, KLD 0.0004, 98.8 %; Q6_K +0.24 %, 0.0021, 97.5 %; Q4_K_M +1.4 %, 0.0127, 94.7 %); large models lose less.

    relative error of a tensor: a uniform code of b bits over a block's range gives about 0.007 at 8, 0.02 at 6, 0.07 to 0.1
    at 4, 0.3 at 2; the bounds leave a factor of three and more for outliers and for GPTQ, and all lie below 1, an empty tensor
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .drift import Drift
from .weights import TensorDrift, WeightsDrift, listed


@dataclass(frozen=True)
class Limits:
    """The most that may be lost; None: not judged. `max_ppl_drift` and `min_top1` are fractions, `max_kld` is in nats."""

    max_ppl_drift: float | None = None
    max_kld: float | None = None
    min_top1: float | None = None

    def overridden_by(self, given: Limits) -> Limits:
        """These limits, with each one that `given` names in its place."""
        named = {name: value for name, value in vars(given).items() if value is not None}
        return replace(self, **named)


@dataclass(frozen=True)
class Gate:
    """One question and its answer. `value` is the end of the interval that was judged; None where nothing was measured."""

    name: str
    limit: float | None
    value: float | None
    passed: bool
    reason: str


SAME_DTYPE = Limits(max_kld=1e-6)
LARGE = 30_000_000_000  # parameters

# (bits per weight from, parameters from, limits): the first row that applies
TABLE: tuple[tuple[float, int, Limits], ...] = (
    (8.0, 0, Limits(0.002, 0.003, 0.97)),
    (6.0, 0, Limits(0.005, 0.01, 0.95)),
    (5.0, 0, Limits(0.01, 0.02, 0.93)),
    (4.0, LARGE, Limits(0.015, 0.03, 0.92)),
    (4.0, 0, Limits(0.03, 0.05, 0.90)),
    (3.0, 0, Limits(0.12, 0.15, 0.85)),
    (0.0, 0, Limits(0.30, 0.5, 0.70)),
)

# (bits per weight of the tensor from, relative error up to)
TENSOR_ERROR: tuple[tuple[float, float], ...] = (
    (16.0, 0.02),
    (8.0, 0.1),
    (6.0, 0.15),
    (5.0, 0.2),
    (4.0, 0.35),
    (3.0, 0.6),
    (0.0, 0.9),
)
SAME_DTYPE_ERROR = 1e-6


def default_limits(bits_per_weight: float, n_parameters: int, same_dtype: bool) -> Limits:
    """What a candidate of this size must hold to."""
    if same_dtype:
        return SAME_DTYPE
    return next(limits for bits, size, limits in TABLE if bits_per_weight >= bits and n_parameters >= size)


def tensor_limit(tensor: TensorDrift) -> float:
    """The largest relative error that this tensor's own type excuses."""
    if tensor.same_dtype:
        return SAME_DTYPE_ERROR
    return next(limit for bits, limit in TENSOR_ERROR if tensor.bits_per_weight >= bits)


def finite_gate(weights: WeightsDrift, broken_layer: str | None) -> Gate:
    """No NaN, no infinity: in the weights, and in what the layers make of them (`broken_layer` says where they do)."""
    reasons = [f"{tensor.name}: {tensor.n_nonfinite} NaN or infinite weights" for tensor in weights.nonfinite]
    if broken_layer is not None:
        reasons.append(broken_layer)
    count = sum(tensor.n_nonfinite for tensor in weights.nonfinite)
    return Gate("finite", 0, float(count), not reasons, listed(reasons) or "every weight and activation is finite")


def tensors_gate(weights: WeightsDrift) -> Gate:
    """Every tensor is there and is what its name says, up to what its type loses."""
    measured = [tensor for tensor in weights.tensors if tensor.relative_error is not None]
    damaged = [tensor for tensor in measured if (tensor.relative_error or 0.0) > tensor_limit(tensor)]
    told = [*weights.problems, *(_damage(tensor) for tensor in sorted(damaged, key=_beyond, reverse=True))]
    worst = max(damaged or measured, key=_beyond, default=None)
    limit = tensor_limit(worst) if worst is not None else None
    value = worst.relative_error if worst is not None else None
    if worst is None or not worst.relative_error:
        good = f"{len(measured)} tensors, all equal to the reference's"
    else:
        good = f"{len(measured)} tensors within what their types lose; the worst is {worst.name}"
    return Gate("tensors", limit, value, not told, listed(told) or good)


def _beyond(tensor: TensorDrift) -> float:
    """How many times its limit a tensor's error is."""
    return (tensor.relative_error or 0.0) / tensor_limit(tensor)


def _damage(tensor: TensorDrift) -> str:
    if tensor.is_zero:
        return f"{tensor.name} is all zeros"
    said = (
        f"{tensor.name} ({tensor.dtype}) has relative error {tensor.relative_error:.3g}, limit {tensor_limit(tensor):g}"
    )
    return said + (f": it is the reference's {tensor.resembles}" if tensor.resembles else "")


def tokenizer_gate(reference: Sequence[int], candidate: Sequence[int]) -> Gate:
    """The same text must become the same token ids, BOS included."""
    if list(reference) == list(candidate):
        return Gate("tokenizer", 0, 0.0, True, "the same token ids")
    pairs = enumerate(zip(reference, candidate, strict=False))
    place = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(reference), len(candidate)))
    ids = [ids[place] if place < len(ids) else "the end" for ids in (reference, candidate)]
    reason = f"token {place} of the text is {ids[1]}, the reference's is {ids[0]}"
    return Gate("tokenizer", 0, None, False, reason)


def drift_gates(drift: Drift, limits: Limits) -> list[Gate]:
    """Perplexity, KLD and top-1 agreement, each where `limits` has a number for it."""
    gates = []
    if limits.max_ppl_drift is not None:
        value = drift.ppl_ratio_upper - 1
        said = f"perplexity changes by at most {value:+.3%}, limit {limits.max_ppl_drift:+.3%}"
        gates.append(Gate("perplexity", limits.max_ppl_drift, value, value <= limits.max_ppl_drift, said))
    if limits.max_kld is not None:
        value = drift.kld.mean.upper
        said = f"mean KLD is at most {value:.6g}, limit {limits.max_kld:g}"
        gates.append(Gate("kld", limits.max_kld, value, value <= limits.max_kld, said))
    if limits.min_top1 is not None:
        value = drift.top1_agreement.lower
        said = f"the likeliest token agrees for at least {value:.2%}, limit {limits.min_top1:.2%}"
        gates.append(Gate("top1", limits.min_top1, value, value >= limits.min_top1, said))
    return gates
