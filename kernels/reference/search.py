"""The arithmetic that the scale searches share: float32 throughout, every sum in index order.

The order is part of the specification: fp32 addition is not associative, and the fast copies (numba, one block a lane)
must choose the same candidate and so give the same bytes. Nothing here may be fused into multiply-adds.

    best scale for given codes   s = sum(w x q) / sum(w q q)
    what it explains             gain = sum(w x q) * s = sum(w x x) - error

Everything is [..., width] with a block's elements in the last axis.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

TINY = np.float32(1e-30)  # far below fp16's smallest number: anything less is as good as zero
HALF_OVERFLOW = np.float32(65520.0)  # the least number that fp16 rounds to infinity
HALF_SMALLEST = np.float32(2.0**-24)
ZERO, ONE = np.float32(0), np.float32(1)


def total(values: Floats) -> Floats:
    """[..., width] -> [...]: the sum over the last axis, from index 0 on, starting at 0."""
    result = np.zeros(values.shape[:-1], np.float32)
    for i in range(values.shape[-1]):
        result = result + values[..., i]
    return result


def reciprocal(values: Floats) -> Floats:
    """1 / value, and 0 where the value is (nearly) 0."""
    usable = np.abs(values) > TINY
    result: Floats = np.where(usable, ONE / np.where(usable, values, ONE), ZERO)
    return result


def codes(values: Floats, low: float | np.float32, high: float | np.float32) -> Floats:
    """Clamp to [low, high], then round half to even; codes stay float32."""
    result: Floats = np.rint(np.minimum(np.maximum(values, np.float32(low)), np.float32(high)))
    return result


def half_scale(values: Floats) -> Floats:
    """The nearest fp16 number, half to even, as float32; of values below `HALF_OVERFLOW`.

    What is not 0 stays so, at fp16's smallest number: a super-block of tiny weights keeps its shape in smaller integer
    scales instead of vanishing.
    """
    rounded = values.astype(np.float16).astype(np.float32)
    lost = (rounded == ZERO) & (values != ZERO)
    result: Floats = np.where(lost, np.copysign(HALF_SMALLEST, values), rounded)
    return result


def half_scale_or(values: Floats, otherwise: Floats) -> Floats:
    """`half_scale`, and `otherwise` where a value is too large for fp16."""
    fits = np.abs(values) < HALF_OVERFLOW
    result: Floats = np.where(fits, half_scale(np.where(fits, values, ZERO)), otherwise)
    return result


def signed_extreme(values: Floats) -> Floats:
    """[..., width] -> [...]: the element of largest magnitude with its sign; the positive one of two alike."""
    high, low = values.max(axis=-1), values.min(axis=-1)
    result: Floats = np.where(high >= -low, high, low)
    return result


def half_bytes(values: Floats) -> NDArray[np.uint8]:
    """[n] -> uint8[n, 2]: fp16, little-endian."""
    return values.astype("<f2").view(np.uint8).reshape(*values.shape, 2)


def bytes_half(packed: NDArray[np.uint8]) -> Floats:
    """uint8[..., 2] -> float32[...]: fp16, little-endian."""
    return np.ascontiguousarray(packed).view("<f2")[..., 0].astype(np.float32)
