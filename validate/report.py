"""What a validation found: plain values, and the JSON document made of them.

    {verdict, protocol, n_ctx, bos, chunks, tokens, text_sha256, token_ids_sha256, seed, resamples, device, notes,
     texts      [{name, chunks, tokens, text_sha256, token_ids_sha256, perplexity}],
     reference  {path, perplexity, bits_per_weight, parameters, nbytes},
     noise_floor {kld, top1_agreement, chunks},
     candidates [{path, verdict, bits_per_weight, nbytes, perplexity, delta_ln_ppl {mean, low, high},
                  kld, reverse_kld {mean, low, high, median, p90, p95, p99, p999, max},
                  top1_agreement, top1_low, top1_high, top5_agreement, top5_low, top5_high,
                  delta_p {mean, rms, p01 ... p999}, flips {tokens, changed, right_to_wrong, wrong_to_right, bands [...]},
                  histogram {edges, counts} of KLD,
                  texts [{name, ...the same numbers}],
                  layers [{layer, cosine, lowest, relative_error, isolated {the same three}, kld_alone}],
                  embedding_kld_alone, head_kld_alone,
                  worst_tensors [...], gates [...],
                  generations [{name, prompt, reference, candidate, tokens, first_divergence, agreement}]}]}

Of several texts the numbers outside `texts` are the first one's; the verdict is over all of them.

What could not be measured is null; no number is ever NaN or infinite. The same input gives the same document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .bootstrap import Interval
from .drift import Divergence, Drift, exponential
from .gates import Gate
from .layers import Alone, LayerDrift
from .protocols import Protocol
from .weights import TensorDrift

WORST = 10  # tensors listed


@dataclass(frozen=True)
class Asked:
    """One text of the question; `text_sha256` is None where token ids were given. `tokens` counts scored ones."""

    name: str
    chunks: int
    tokens: int
    text_sha256: str | None
    token_ids_sha256: str


@dataclass(frozen=True)
class Evaluation:
    """The question that was asked, enough of it to ask again: two reports compare only where these agree.

    `notes` say what a reader of the numbers must know; `device` what computed them: "cpu", or the card by its name.
    """

    protocol: Protocol
    texts: tuple[Asked, ...]
    seed: int
    resamples: int
    notes: tuple[str, ...] = ()
    device: str = "cpu"

    @property
    def chunks(self) -> int:
        """Windows of all texts."""
        return sum(text.chunks for text in self.texts)

    @property
    def tokens(self) -> int:
        """Scored tokens of all texts."""
        return sum(text.tokens for text in self.texts)

    def document(self) -> dict[str, Any]:
        """As it stands in every report; digests outside `texts` are the first text's."""
        return {
            "protocol": self.protocol.name,
            "n_ctx": self.protocol.n_ctx,
            "stride": self.protocol.stride,
            "bos": self.protocol.bos,
            "chunks": self.chunks,
            "tokens": self.tokens,
            "text_sha256": self.texts[0].text_sha256,
            "token_ids_sha256": self.texts[0].token_ids_sha256,
            "seed": self.seed,
            "resamples": self.resamples,
            "device": self.device,
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
    """What the candidates are held against; `perplexities`, a text each, are empty where no candidate could be run.

    Sizes are None where it is no model but what another program recorded of one.
    """

    path: str
    bits_per_weight: float | None
    parameters: int | None
    nbytes: int | None
    perplexities: tuple[float, ...]

    @property
    def perplexity(self) -> float | None:
        """On the first text."""
        return self.perplexities[0] if self.perplexities else None


@dataclass(frozen=True)
class NoiseFloor:
    """The reference against itself with every layer's output rounded to bf16: drift that no quantization causes."""

    kld: Interval
    top1_agreement: Interval
    chunks: int


@dataclass(frozen=True)
class Generation:
    """What reference and candidate write after one prompt, a text for each token.

    first_divergence  index of the first token that differs; None where all are the same
    """

    name: str
    prompt: str
    reference: tuple[str, ...]
    candidate: tuple[str, ...]
    first_divergence: int | None

    @property
    def agreement(self) -> float:
        """The share of the reference's tokens before the first divergence."""
        return 1.0 if self.first_divergence is None else self.first_divergence / len(self.reference)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON; `tokens` counts the reference's."""
        return {
            "name": self.name,
            "prompt": self.prompt,
            "reference": "".join(self.reference),
            "candidate": "".join(self.candidate),
            "tokens": len(self.reference),
            "first_divergence": self.first_divergence,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class CandidateResult:
    """One candidate; `drifts`, a text each, are empty where it could not be run, and then a failed gate says why."""

    path: str
    bits_per_weight: float
    nbytes: int
    drifts: tuple[Drift, ...]
    layers: tuple[LayerDrift, ...]
    tensors: tuple[TensorDrift, ...]
    gates: tuple[Gate, ...]
    alone: Alone | None = None
    generations: tuple[Generation, ...] = ()

    @property
    def drift(self) -> Drift | None:
        """On the first text."""
        return self.drifts[0] if self.drifts else None

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

    def document(self, texts: tuple[Asked, ...]) -> dict[str, Any]:
        """Plain values for JSON."""
        named = [{"name": text.name, **drift_document(drift)} for text, drift in zip(texts, self.drifts, strict=False)]
        return {
            "path": self.path,
            "verdict": self.verdict,
            "bits_per_weight": self.bits_per_weight,
            "nbytes": self.nbytes,
            **drift_document(self.drift),
            "texts": named,
            "layers": [
                {
                    "layer": index,
                    **asdict(layer.accumulated),
                    "isolated": None if layer.isolated is None else asdict(layer.isolated),
                    "kld_alone": layer.kld_alone,
                }
                for index, layer in enumerate(self.layers)
            ],
            "embedding_kld_alone": None if self.alone is None else self.alone.embedding,
            "head_kld_alone": None if self.alone is None else self.alone.head,
            "worst_tensors": [tensor.document() for tensor in self.worst_tensors],
            "gates": [asdict(gate) for gate in self.gates],
            "generations": [generation.document() for generation in self.generations],
        }


@dataclass(frozen=True)
class ValidationReport:
    """A reference, its candidates, and the verdict over all of them."""

    evaluation: Evaluation
    reference: Reference
    candidates: tuple[CandidateResult, ...]
    noise_floor: NoiseFloor | None = None

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
        texts = self.evaluation.texts
        perplexities = self.reference.perplexities or (None,) * len(texts)
        reference = {key: value for key, value in asdict(self.reference).items() if key != "perplexities"}
        return finite_values(
            {
                "verdict": self.verdict,
                **self.evaluation.document(),
                "texts": [{**asdict(text), "perplexity": ppl} for text, ppl in zip(texts, perplexities, strict=True)],
                "reference": {**reference, "perplexity": self.reference.perplexity},
                "noise_floor": None if self.noise_floor is None else asdict(self.noise_floor),
                "candidates": [candidate.document(texts) for candidate in self.candidates],
            }
        )


def drift_document(drift: Drift | None) -> dict[str, Any]:
    """One text's numbers; null where nothing was measured."""
    if drift is None:
        names = ("perplexity", "delta_ln_ppl", "kld", "reverse_kld", "top1_agreement", "top1_low", "top1_high")
        return dict.fromkeys((*names, "top5_agreement", "top5_low", "top5_high", "delta_p", "flips", "histogram"))
    return {
        "perplexity": drift.perplexity,
        "delta_ln_ppl": asdict(drift.delta_ln_ppl),
        "kld": _divergence(drift.kld),
        "reverse_kld": _divergence(drift.reverse_kld),
        "top1_agreement": drift.top1_agreement.mean,
        "top1_low": drift.top1_agreement.low,
        "top1_high": drift.top1_agreement.high,
        "top5_agreement": drift.top5_agreement.mean,
        "top5_low": drift.top5_agreement.low,
        "top5_high": drift.top5_agreement.high,
        "delta_p": asdict(drift.target_shift),
        "flips": asdict(drift.flips),
        "histogram": asdict(drift.histogram),
    }


def _divergence(divergence: Divergence) -> dict[str, Any]:
    found = asdict(divergence)
    return {**found.pop("mean"), **found}


def finite_values(document: dict[str, Any]) -> dict[str, Any]:
    """The document with null for every number that JSON has no word for."""
    return {key: _finite(value) for key, value in document.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
