"""The questions that a candidate must answer, and what it takes to pass.

A gate on drift passes where the whole interval does: the upper end of perplexity drift and KLD, the lower end of top-1
agreement ("not significantly different" is no pass). Where only the interval is too wide, the gate says how many more
chunks of such text would settle it: an interval narrows with the square root of their number.

    relative error of a tensor: a uniform code of b bits over a block's range gives about 0.007 at 8, 0.02 at 6, 0.07 to 0.1
    at 4, 0.3 at 2; the bounds leave a factor of three and more for outliers and for GPTQ, and all lie below 1, an empty tensor
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..convert.tokenizer import Tokenizer
from ..errors import quoted
from .bootstrap import Interval
from .drift import Drift, exponential
from .limits import Limits
from .weights import TensorDrift, WeightsDrift, listed


@dataclass(frozen=True)
class Gate:
    """One question and its answer; None where nothing was measured.

    value        the end of the interval that was judged
    measured     the middle of it: the measurement itself
    more_chunks  beside those that were run, after which the interval would lie within the limit; None: no number would do
    text         the name of the text it was measured on, where there are several
    """

    name: str
    limit: float | None
    value: float | None
    passed: bool
    reason: str
    measured: float | None = None
    more_chunks: int | None = None
    text: str | None = None


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


def tensor_limit(tensor: TensorDrift) -> float:
    """The largest relative error that this tensor's own type excuses."""
    if tensor.same_dtype:
        return SAME_DTYPE_ERROR
    return next(limit for bits, limit in TENSOR_ERROR if tensor.bits_per_weight >= bits)


def finite_gate(weights: WeightsDrift, broken_layer: str | None) -> Gate:
    """No NaN, no infinity: in the weights, and in what the layers make of them (`broken_layer` says where they do)."""
    reasons = [_nonfinite(tensor) for tensor in weights.nonfinite]
    if broken_layer is not None:
        reasons.append(broken_layer)
    count = sum(tensor.n_nonfinite for tensor in weights.nonfinite)
    return Gate("finite", 0, float(count), not reasons, listed(reasons) or "every weight and activation is finite")


def _nonfinite(tensor: TensorDrift) -> str:
    n_nan = tensor.n_nonfinite - tensor.n_infinite
    told = [f"{count} {word}" for count, word in ((n_nan, "NaN"), (tensor.n_infinite, "infinite")) if count]
    cause = ", as numbers beyond 65504 become in fp16" if tensor.n_infinite and tensor.dtype == "F16" else ""
    return f"{tensor.name} ({tensor.dtype}): {' and '.join(told)} of {tensor.n_weights} weights{cause}"


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
    return said + (f": {tensor.mistake}" if tensor.mistake else "")


def tokenizer_gate(reference: Sequence[int], candidate: Sequence[int], text: str | None = None) -> Gate:
    """The same text must become the same token ids, BOS included."""
    if list(reference) == list(candidate):
        return Gate("tokenizer", 0, 0.0, True, "the same token ids", text=text)
    pairs = enumerate(zip(reference, candidate, strict=False))
    place = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(reference), len(candidate)))
    ids = [ids[place] if place < len(ids) else "the end" for ids in (reference, candidate)]
    reason = f"token {place} of the text is {ids[1]}, the reference's is {ids[0]}" + _shift(reference, candidate)
    return Gate("tokenizer", 0, None, False, reason, text=text)


def _shift(reference: Sequence[int], candidate: Sequence[int]) -> str:
    """Said where the ids that differ do so by one number, and most do: special tokens may keep theirs."""
    apart = [theirs - ours for ours, theirs in zip(reference, candidate, strict=False) if ours != theirs]
    if len(reference) != len(candidate) or len(set(apart)) != 1 or 2 * len(apart) < len(reference):
        return ""
    by = "one" if abs(apart[0]) == 1 else str(abs(apart[0]))
    return f"; {len(apart)} ids are {by} too {'high' if apart[0] > 0 else 'low'}: the vocabulary is shifted by {by}"


def special_tokens_gate(reference: Tokenizer, candidate: Tokenizer) -> Gate:
    """The same begin, end and padding tokens and, where both have one, the same chat template."""
    pairs = [
        (name, getattr(reference, name), getattr(candidate, name))
        for name in ("bos_id", "eos_id", "add_bos", "add_eos")
    ]
    if reference.chat_template is not None and candidate.chat_template is not None:
        pairs.append(("chat_template", reference.chat_template, candidate.chat_template))
    wrong = [_differs(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]
    said = listed(wrong) or "the same begin and end tokens"
    if not wrong and (reference.chat_template is None) != (candidate.chat_template is None):
        said += f"; the {'reference' if reference.chat_template is None else 'candidate'} has no chat template"
    return Gate("special tokens", 0, float(len(wrong)), not wrong, said)


def not_measured(name: str, why: str, text: str | None = None) -> Gate:
    """A question that was not asked: it does not fail."""
    return Gate(name, None, None, True, f"not measured: {why}", text=text)


def config_gate(reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> Gate:
    """The same facts that the forward pass computes with, such as the rotary base, up to float32's precision."""
    names = sorted({*reference, *candidate})
    wrong = [said for name in names for said in _differences(name, reference.get(name), candidate.get(name))]
    return Gate("config", 0, float(len(wrong)), not wrong, listed(wrong) or "the same facts about the model")


def _differences(name: str, ours: Any, theirs: Any) -> list[str]:
    """A line for each fact that differs, those inside `rope_parameters` and its like by their own names."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = sorted({*ours, *theirs}, key=str)
        return [said for key in keys for said in _differences(f"{name}.{key}", ours.get(key), theirs.get(key))]
    return [] if _alike(ours, theirs) else [_differs(name, ours, theirs)]


def _alike(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) or isinstance(theirs, float):
        numbers = [value for value in (ours, theirs) if isinstance(value, (int, float)) and not isinstance(value, bool)]
        return len(numbers) == 2 and math.isclose(*numbers, rel_tol=1e-6)
    return bool(ours == theirs)


def _differs(name: str, ours: object, theirs: object) -> str:
    return f"{name} is {quoted(theirs)}, the reference's is {quoted(ours)}"


def drift_gates(drift: Drift, limits: Limits, n_chunks: int, text: str | None = None) -> list[Gate]:
    """Perplexity, KLD and agreement on one text, each where `limits` has a number for it."""
    gates = []
    if limits.max_ppl_drift is not None:
        change = drift.delta_ln_ppl
        said = f"perplexity changes by at most {drift.ppl_ratio_upper - 1:+.3%}, limit {limits.max_ppl_drift:+.3%}"
        low, high = (None if end is None else exponential(end) - 1 for end in (change.low, change.high))
        ends = Interval(exponential(change.mean) - 1, low, high)
        gates.append(_at_most("perplexity", ends, limits.max_ppl_drift, n_chunks, said, text))
    if limits.max_kld is not None:
        said = f"mean KLD is at most {drift.kld.mean.upper:.6g}, limit {limits.max_kld:g}"
        gates.append(_at_most("kld", drift.kld.mean, limits.max_kld, n_chunks, said, text))
    if limits.max_kld_p999 is not None:
        said = (
            f"KLD of the thousandth of tokens that suffer most is {drift.kld.p999:.6g}, limit {limits.max_kld_p999:g}"
        )
        single = Interval(drift.kld.p999, None, None)
        gates.append(_at_most("kld p99.9", single, limits.max_kld_p999, n_chunks, said, text))
    if limits.min_top1 is not None:
        said = f"the likeliest token agrees for at least {drift.top1_agreement.lower:.2%}, limit {limits.min_top1:.2%}"
        gates.append(_at_least("top1", drift.top1_agreement, limits.min_top1, n_chunks, said, text))
    if limits.min_top5 is not None:
        said = (
            f"of the five likeliest tokens at least {drift.top5_agreement.lower:.2%} stay, limit {limits.min_top5:.2%}"
        )
        gates.append(_at_least("top5", drift.top5_agreement, limits.min_top5, n_chunks, said, text))
    return gates


def _at_most(name: str, found: Interval, limit: float, n_chunks: int, said: str, text: str | None) -> Gate:
    passed = found.upper <= limit
    more = None if passed else _more_chunks(n_chunks, limit - found.mean, found.upper - found.mean)
    return Gate(name, limit, found.upper, passed, said + _advice(passed, more), found.mean, more, text)


def _at_least(name: str, found: Interval, limit: float, n_chunks: int, said: str, text: str | None) -> Gate:
    passed = found.lower >= limit
    more = None if passed else _more_chunks(n_chunks, found.mean - limit, found.mean - found.lower)
    return Gate(name, limit, found.lower, passed, said + _advice(passed, more), found.mean, more, text)


def _more_chunks(n_chunks: int, room: float, width: float) -> int | None:
    """Chunks to add so that half an interval, now `width`, fits into `room`; None where the mean itself is beyond."""
    if not (0 < room < width < math.inf):
        return None
    return math.ceil(n_chunks * (width / room) ** 2) - n_chunks


def _advice(passed: bool, more: int | None) -> str:
    if passed:
        return ""
    if more is None:
        return "; the measured value itself is beyond it, so more text would not help"
    return f"; the measured value is within it: about {more} more chunks would settle it"
