"""How much work a measurement is, known before it begins, so that one bar runs over all of it at an even pace.

    weights       P COMPARE                          for each candidate of P weights
    layers        P_layers (LOAD + T MULTIPLY)       for each pass of T tokens: reference, candidates, noise floor
    head          V d (LOAD + n MULTIPLY) + V n ODDS for n scored tokens, each model
    generations   P n GENERATE                       for n tokens that each model writes, where it may

The constants are nanoseconds on two cores of an AMD EPYC (Zen 3); only their ratios matter. Windows that ride along with a
stream count for it, though they are only seen when their layer is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..convert.model import Model
from ..convert.progress import Progress, silent
from .generations import MAX_RAM, PROMPTS
from .options import ValidateOptions
from .question import FEW_CHUNKS, Question

COMPARE = 1.5  # a weight against the reference's: both read and decoded
LOAD = 1.0  # a weight read, decoded, checked
MULTIPLY = 0.02  # a weight with a token
ODDS = 20.0  # a token of the vocabulary at a scored position
GENERATE = 0.5  # a weight with one token alone: bound by memory
STEPS = 1000  # of the whole


@dataclass(frozen=True)
class Parts:
    """What each part of a measurement reports to."""

    weights: Progress = silent
    layers: Progress = silent
    head: Progress = silent
    generations: Progress = silent


def parts(
    progress: Progress, models: Sequence[Model], n_compared: int, asked: Question, options: ValidateOptions
) -> Parts:
    """`models` go through their layers, the first of them alone with a noise floor where n_compared > 0 candidates follow."""
    tokens = [len(window.tokens) for window in asked.windows]
    few = sum(tokens[:FEW_CHUNKS])
    costs = [
        sum(model.parameters * COMPARE for model in models[len(models) - n_compared :]),
        sum(_inner(model) * (LOAD + MULTIPLY * sum(tokens)) for model in models),
        sum(_head(model, asked.evaluation.tokens) for model in models),
        _generations(models, options) if n_compared else 0.0,
    ]
    if n_compared:
        riders = _riders(models[0], n_compared, options.attribute) * few
        costs[1] += _inner(models[0]) * (MULTIPLY * riders + (LOAD + MULTIPLY * few if options.noise_floor else 0.0))
    return Parts(*shares(progress, costs))


def shares(progress: Progress, costs: Sequence[float]) -> list[Progress]:
    """A callback for each part of a whole; each maps its own (done, total) to the whole's."""
    whole = sum(costs) or 1.0
    return [_share(progress, sum(costs[:index]) / whole, cost / whole) for index, cost in enumerate(costs)]


def _share(progress: Progress, start: float, share: float) -> Progress:
    return lambda done, total, label: progress(round(STEPS * (start + share * done / max(1, total))), STEPS, label)


def _vocabulary(model: Model) -> int:
    """Weights of the embedding, or of the output matrix."""
    n_tokens = model.config.get("vocab_size")
    return max((prod(t.shape) for t in model.tensors.values() if t.shape[0] == n_tokens), default=0)


def _inner(model: Model) -> int:
    n_tokens = model.config.get("vocab_size")
    return sum(prod(tensor.shape) for tensor in model.tensors.values() if tensor.shape[0] != n_tokens)


def _head(model: Model, n_scored: int) -> float:
    n_tokens = int(model.config.get("vocab_size") or 0)
    return _vocabulary(model) * (LOAD + MULTIPLY * n_scored) + n_tokens * n_scored * ODDS


def _riders(model: Model, n_candidates: int, attribute: bool) -> float:
    """How often a few windows go through all layers once more: each candidate's on the reference's input, and branches."""
    n_layers = int(model.config.get("num_hidden_layers") or 0)
    return n_candidates * (1 + (n_layers + 1) / 2 * attribute)


def _generations(models: Sequence[Model], options: ValidateOptions) -> float:
    limit = MAX_RAM if options.max_ram is None else options.max_ram
    if max(4 * model.parameters for model in models) > limit:
        return 0.0
    return sum(model.parameters * GENERATE for model in models) * options.generate * len(PROMPTS)
