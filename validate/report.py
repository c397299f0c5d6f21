"""What a validation found: plain values, and the JSON document made of them.

    {verdict, protocol, n_ctx, bos, chunks, tokens, text_sha256, token_ids_sha256, seed, resamples, notes,
     reference  {path, perplexity, bits_per_weight, parameters},
     candidates [{path, verdict, bits_per_weight, perplexity, delta_ln_ppl {mean, low, high},
                  kld {mean, low, high, median, p90, p95, p99, p999, max}, top1_agreement, top1_low, top1_high,
                  delta_p {mean, rms, p1, p99}, layers [{layer, cosine, lowest}], worst_tensors [...], gates [...]}]}

What could not be measured is null; no number is ever NaN or infinite. The same input gives the same document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .bootstrap import Interval
from .drift import Drift, LayerCosine, exponential
from .gates import Gate
from .protocols import Protocol
from .weights import TensorDrift

WORST = 10  # tensors listed


@dataclass(frozen=True)
class Evaluation:
    """The question that was asked, enough of it to ask again: two reports compare only where these agree.

    `tokens` counts scored tokens. `notes` say what a reader of the numbers must know.
    """

    protocol: Protocol
    chunks: int
    tokens: int
    text_sha256: str
    token_ids_sha256: str
    seed: int
    resamples: int
    notes: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it stands in every report."""
        return {
            "protocol": self.protocol.name,
            "n_ctx": self.protocol.n_ctx,
            "bos": self.protocol.bos,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "text_sha256": self.text_sha256,
            "token_ids_sha256": self.token_ids_sha256,
            "seed": self.seed,
            "resamples": self.resamples,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class PerplexityResult:
    """`ln_perplexity` is the mean nll in nats with its interval over chunks."""

    path: str
    evaluation: Evaluation
    ln_perplexity: Interval

    @property
    def perplexity(self) -> float:
        """e^(mean nll)."""
        return exponential(self.ln_perplexity.mean)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        low, high = (
            None if end is None else exponential(end) for end in (self.ln_perplexity.low, self.ln_perplexity.high)
        )
        found = {"path": self.path, "perplexity": self.perplexity, "low": low, "high": high}
        return finite_values({**found, **self.evaluation.document()})


@dataclass(frozen=True)
class Reference:
    """What the candidates are held against; `perplexity` is None where no candidate could be run."""

    path: str
    bits_per_weight: float
    parameters: int
    perplexity: float | None


@dataclass(frozen=True)
class CandidateResult:
    """One candidate; `drift` is None where it could not be run, and then a failed gate says why."""

    path: str
    bits_per_weight: float
    drift: Drift | None
    layers: tuple[LayerCosine, ...]
    tensors: tuple[TensorDrift, ...]
    gates: tuple[Gate, ...]

    @property
    def passed(self) -> bool:
        """True where every gate does."""
        return all(gate.passed for gate in self.gates)

    @property
    def verdict(self) -> str:
        """ "pass" or "fail"."""
        return "pass" if self.passed else "fail"

    @property
    def worst_tensors(self) -> tuple[TensorDrift, ...]:
        """The tensors that differ most, non-finite ones first; those that equal the reference's are not among them."""
        changed = [tensor for tensor in self.tensors if tensor.n_nonfinite or tensor.relative_error]
        worst = sorted(changed, key=lambda tensor: (-tensor.n_nonfinite, -(tensor.relative_error or 0.0), tensor.name))
        return tuple(worst[:WORST])

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "path": self.path,
            "verdict": self.verdict,
            "bits_per_weight": self.bits_per_weight,
            **_drift_document(self.drift),
            "layers": [
                {"layer": index, "cosine": layer.mean, "lowest": layer.lowest}
                for index, layer in enumerate(self.layers)
            ],
            "worst_tensors": [{**asdict(tensor), "sqnr_db": tensor.sqnr_db} for tensor in self.worst_tensors],
            "gates": [asdict(gate) for gate in self.gates],
        }


@dataclass(frozen=True)
class ValidationReport:
    """A reference, its candidates, and the verdict over all of them."""

    evaluation: Evaluation
    reference: Reference
    candidates: tuple[CandidateResult, ...]

    @property
    def passed(self) -> bool:
        """True where every candidate passes."""
        return all(candidate.passed for candidate in self.candidates)

    @property
    def verdict(self) -> str:
        """ "pass" or "fail"."""
        return "pass" if self.passed else "fail"

    def document(self) -> dict[str, Any]:
        """The report as plain values, ready for `json.dumps(..., allow_nan=False)`."""
        return finite_values(
            {
                "verdict": self.verdict,
                **self.evaluation.document(),
                "reference": asdict(self.reference),
                "candidates": [candidate.document() for candidate in self.candidates],
            }
        )


def _drift_document(drift: Drift | None) -> dict[str, Any]:
    if drift is None:
        return dict.fromkeys(
            ("perplexity", "delta_ln_ppl", "kld", "top1_agreement", "top1_low", "top1_high", "delta_p")
        )
    kld = asdict(drift.kld)
    return {
        "perplexity": drift.perplexity,
        "delta_ln_ppl": asdict(drift.delta_ln_ppl),
        "kld": {**kld.pop("mean"), **kld},
        "top1_agreement": drift.top1_agreement.mean,
        "top1_low": drift.top1_agreement.low,
        "top1_high": drift.top1_agreement.high,
        "delta_p": asdict(drift.target_shift),
    }


def finite_values(document: dict[str, Any]) -> dict[str, Any]:
    """The document with null for every number that JSON has no word for."""
    return {key: _finite(value) for key, value in document.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
