"""Reports made of plain values, for tests of what is drawn and written from them: no model is run."""

from __future__ import annotations

import math

import numpy as np
from smelt.validate.bootstrap import Interval
from smelt.validate.drift import Divergence, Drift, FlipBand, Flips, Histogram, TargetShift, kld_histogram
from smelt.validate.gates import Gate
from smelt.validate.layers import Alone, Apart, LayerDrift
from smelt.validate.protocols import protocol
from smelt.validate.report import (
    Asked,
    CandidateResult,
    Evaluation,
    Generation,
    NoiseFloor,
    Reference,
    ValidationReport,
)
from smelt.validate.weights import TensorDrift

BITS = (8.5, 4.85, 4.06, 3.23, 2.6)


def a_drift(size: float) -> Drift:
    """KLD around `size`, all else in proportion."""
    divergence = Divergence(Interval(size, size * 0.9, size * 1.2), size / 2, size, size, size * 5, size * 9, size * 20)
    bands = tuple(FlipBand(low, low + 0.25, 100, int(40 * (1 - low))) for low in (0.0, 0.25, 0.5, 0.75))
    return Drift(
        7.0,
        Interval(size, size / 2, size * 2),
        divergence,
        divergence,
        Interval(0.95, 0.93, 0.96),
        Interval(0.97, 0.96, 0.98),
        TargetShift(-0.001, 0.01, -0.2, -0.1, -0.05, 0, 0, 0, 0.05, 0.1, 0.2),
        Flips(400, 100, 30, 20, bands),
        a_histogram(size),
    )


def a_histogram(size: float) -> Histogram:
    """Of values spread around `size`, and an exact 0."""
    return kld_histogram(np.concatenate([[0.0], size * np.exp(np.linspace(-3, 3, 399))]))


def a_candidate(
    path: str,
    index: int,
    *,
    passed: bool = True,
    run: bool = True,
    texts: int = 1,
    layers: int = 4,
    alone: bool = False,
) -> CandidateResult:
    """A candidate whose every number is there, but where `run` is False."""
    size = 1e-4 * 8**index
    drifted = tuple(
        LayerDrift(
            Apart(1 - size * (k + 1), 1 - size * 9, math.sqrt(size)),
            Apart(1 - size, 1 - size * 2, math.sqrt(size) / 3),
            size / layers if alone else None,
        )
        for k in range(layers)
    )
    gates = [
        Gate("finite", 0, 0.0 if run else 3.0, run, "every weight and activation is finite" if run else "3 NaN in t")
    ]
    if run:
        said = "mean KLD is at most 0.012, limit 0.05" if passed else "mean KLD is at most 0.2, limit 0.05"
        gates += [
            Gate("kld", 0.05, 0.012 if passed else 0.2, passed, said, 0.01, text=f"text{k}" if texts > 1 else None)
            for k in range(texts)
        ]
    tensor = TensorDrift(
        "model.layers.1.mlp.down_proj.weight",
        "Q4_K",
        4.5,
        False,
        0,
        0.07,
        0.99,
        0.1,
        n_weights=1 << 20,
        nbytes=589824,
        n_blocks=9,
    )
    return CandidateResult(
        path,
        BITS[index % len(BITS)],
        3_500_000,
        tuple(a_drift(size * (k + 1)) for k in range(texts)) if run else (),
        drifted if run else (),
        (tensor,),
        tuple(gates),
        alone=Alone(size, tuple(size for _ in range(layers)), size) if alone else None,
        generations=some_generations(index) if run else (),
    )


def some_generations(index: int) -> tuple[Generation, ...]:
    """One that agrees throughout, one that parts at its second token."""
    ours = (" the", " cat", " sat")
    return (
        Generation("prose", "Once upon a time", ours, ours, None),
        Generation("code", "def f(x):", ours, (" the", f" d<o>g{index}", "\n"), 1),
    )


def a_report(
    *candidates: CandidateResult, texts: int = 1, reference: str = "models/ref", name: str = "text0"
) -> ValidationReport:
    """Held against a reference of fixed numbers; texts are called text0, text1, ..., the first of them `name`."""
    names = [name, *(f"text{k}" for k in range(1, texts))]
    asked = tuple(Asked(each, 12, 400, f"{k:064x}", f"{k + 7:064x}") for k, each in enumerate(names))
    held = Reference(reference, 16.0, 5_000_000, 10_000_000, tuple(6.5 for _ in names))
    floor = NoiseFloor(Interval(1e-6, 9e-7, 2e-6), Interval(0.999, 0.99, 1.0), 8)
    evaluation = Evaluation(protocol("llamacpp", 64), asked, 0, 1000)
    return ValidationReport(evaluation, held, candidates, floor)
