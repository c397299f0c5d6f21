"""Does the 95 % interval hold the truth in 95 % of cases? Samples with a known mean, correlated within a chunk."""

from __future__ import annotations

import numpy as np
import pytest
from smelt.validate.bootstrap import interval

SAMPLES, CHUNKS, TOKENS = 200, 40, 255
DRIFT, CORRELATION, SPREAD = 0.013, 0.3, 0.27  # nats: a 4-bit model's, token by token


def sample(seed: int) -> list[np.ndarray]:
    """Paired differences of 40 chunks: a shift shared by all tokens of a chunk carries 0.3 of the variance."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((CHUNKS, 1)) * np.sqrt(CORRELATION)
    own = generator.standard_normal((CHUNKS, TOKENS)) * np.sqrt(1 - CORRELATION)
    return list(DRIFT + SPREAD * (shared + own))


def skewed(seed: int) -> list[np.ndarray]:
    """The same for KLD: positive, a few tokens with most of it."""
    generator = np.random.default_rng(seed)
    shared = generator.standard_normal((CHUNKS, 1)) * np.sqrt(CORRELATION)
    own = generator.standard_normal((CHUNKS, TOKENS)) * np.sqrt(1 - CORRELATION)
    return list(np.exp(shared + own))


def coverage(make: object, truth: float) -> tuple[float, float]:
    """Shares of samples whose interval holds `truth`: resampling chunks, and taking tokens for independent."""
    by_chunk = by_token = 0
    for seed in range(SAMPLES):
        chunks = make(seed)  # type: ignore[operator]
        found = interval(chunks, resamples=2000, seed=seed)
        by_chunk += found.low <= truth <= found.high  # type: ignore[operator]
        tokens = np.concatenate(chunks)
        half = 1.96 * tokens.std(ddof=1) / np.sqrt(tokens.size)
        by_token += abs(tokens.mean() - truth) <= half
    return by_chunk / SAMPLES, by_token / SAMPLES


def test_the_interval_over_chunks_holds_the_truth_and_the_usual_one_does_not() -> None:
    by_chunk, by_token = coverage(sample, DRIFT)
    assert 0.91 <= by_chunk <= 0.98
    assert by_token < 0.5


@pytest.mark.long
def test_skewed_divergences_are_covered_nearly_as_well() -> None:
    by_chunk, by_token = coverage(skewed, float(np.exp(0.5)))
    assert by_chunk >= 0.89
    assert by_token < 0.5


if __name__ == "__main__":
    print("drift", coverage(sample, DRIFT), "skewed", coverage(skewed, float(np.exp(0.5))))
