"""How far one layer's output is from the reference's, over the tokens of all windows.

    cosine = mean h_p . h_q / (|h_p| |h_q|)        lowest: of the worst token
    relative error = |h_q - h_p| / |h_p|           norms over all tokens

Accumulated, each model goes on from its own states; isolated, the candidate's layer is given the reference's own input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Apart:
    """Two sets of hidden states: mean and lowest cosine over tokens, relative error over all of them."""

    cosine: float
    lowest: float
    relative_error: float


@dataclass(frozen=True)
class LayerDrift:
    """One layer of a candidate.

    accumulated  its output against the reference's, each model on its own states
    isolated     the same layer on the reference's own input, on a few windows; None where that was not measured
    kld_alone    nats that replacing this layer alone contributes; None where that was not asked for
    """

    accumulated: Apart
    isolated: Apart | None = None
    kld_alone: float | None = None


@dataclass(frozen=True)
class Alone:
    """Mean KLD in nats, over a few windows, of the reference with just one part taken from a candidate.

    `embedding` has the learned positions too, `head` the final norm; infinity where the odds are not finite any more.
    """

    embedding: float
    layers: tuple[float, ...]
    head: float


def apart(reference: Iterable[Tensor], candidate: Iterable[Tensor]) -> Apart:
    """Window by window: hidden states float32[1, T, d] of both. Sums are float64."""
    total, count, lowest = 0.0, 0, 1.0
    signal = noise = 0.0
    for ours, theirs in zip(reference, candidate, strict=True):
        a, b = ours.double(), theirs.double()
        # Equal states are 1 exactly; the quotient could round to 1 - 1e-16.
        equal = (a == b).all(dim=-1)
        cosine = torch.where(equal, 1.0, torch.nn.functional.cosine_similarity(a, b, dim=-1, eps=1e-30))
        total, count = total + float(cosine.sum()), count + cosine.numel()
        lowest = min(lowest, float(cosine.min()))
        signal, noise = signal + float((a * a).sum()), noise + float(((b - a) ** 2).sum())
    error = math.sqrt(noise / signal) if signal else (0.0 if noise == 0 else math.inf)
    return Apart(total / count, lowest, error)
