"""The arithmetic of the scale searches, one block a thread: `reference/search.py`, operation by operation.

A block is a tuple of vectors, x[i] holding element i of every block of the program. So a block lies in one thread's
registers, a sum needs no exchange between threads, and it adds in index order, which the specification asks for: the
bytes are the reference's. Halves round to even by adding and subtracting 1.5 * 2^23, exact for codes.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import checks
from ..reference import search as reference
from .blocks import widen

TINY = tl.constexpr(float(reference.TINY))
TO_EVEN = tl.constexpr(1.5 * 2**23)
SEARCH_LIMIT = tl.constexpr(float(checks.SEARCH_LIMIT))
HALF_OVERFLOW = tl.constexpr(float(reference.HALF_OVERFLOW))
HALF_SMALLEST = tl.constexpr(float(reference.HALF_SMALLEST))
FP32_MAX = tl.constexpr(3.4028234663852886e38)


@triton.jit
def load_block(start, inside, WIDTH: tl.constexpr, LOG: tl.constexpr):
    """[R] pointers to blocks -> WIDTH = 2^LOG vectors float32[R], 0 outside.

    One load of [WIDTH / 4, R, 4]: with as many blocks as threads, every thread reads its own block, four at a time.
    """
    R: tl.constexpr = start.shape[0]
    place = tl.arange(0, WIDTH // 4)[:, None, None] * 4 + tl.arange(0, 4)[None, None, :]
    block = widen(tl.load(start[None, :, None] + place, mask=inside[None, :, None], other=0.0))
    parts = (tl.reshape(tl.permute(block, (1, 0, 2)), (R, WIDTH)),)
    # part k holds the elements k, k + n, k + 2n, ... of n parts; halving each keeps that true
    for level in tl.static_range(0, LOG):
        evens = ()
        odds = ()
        for k in tl.static_range(0, 2**level):
            if level == LOG - 1:
                even, odd = tl.split(parts[k])
            else:
                even, odd = tl.split(tl.reshape(parts[k], (R, WIDTH // 2 ** (level + 1), 2)))
            evens += (even,)
            odds += (odd,)
        parts = evens + odds
    return parts


@triton.jit
def columns(parts, LOG: tl.constexpr):
    """2^LOG vectors [R] -> [R, 2^LOG], so that a thread stores neighbours at once; undoes what `load_block` splits."""
    R: tl.constexpr = parts[0].shape[0]
    for level in tl.static_range(LOG - 1, -1, -1):
        joined = ()
        for k in tl.static_range(0, 2**level):
            joined += (tl.reshape(tl.join(parts[k], parts[k + 2**level]), (R, 2 ** (LOG - level))),)
        parts = joined
    return parts[0]


@triton.jit
def extremes(x):
    """-> (smallest, largest, whether all are finite)"""
    low = x[0]
    high = x[0]
    finite = tl.abs(x[0]) <= FP32_MAX
    for i in tl.static_range(1, len(x)):
        low = tl.minimum(low, x[i])
        high = tl.maximum(high, x[i])
        finite = finite & (tl.abs(x[i]) <= FP32_MAX)
    return low, high, finite


@triton.jit
def signed_extreme(low, high):
    """Of the smallest and the largest the one of greater magnitude; the positive one of two alike."""
    return tl.where(high >= -low, high, low)


@triton.jit
def out_of_range(low, high):
    """Whether a weight is beyond what any searched block can hold."""
    return tl.maximum(high, -low) >= SEARCH_LIMIT


@triton.jit
def sum_of_squares(x):
    """In index order."""
    total = tl.zeros_like(x[0])
    for i in tl.static_range(0, len(x)):
        total += x[i] * x[i]
    return total


@triton.jit
def reciprocal(value):
    """1 / value, and 0 where the value is (nearly) 0."""
    usable = tl.abs(value) > TINY
    return tl.where(usable, tl.div_rn(1.0, tl.where(usable, value, 1.0)), 0.0)


@triton.jit
def codes(value, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Clamp, then round half to even; float32."""
    return (tl.minimum(tl.maximum(value, LOW), HIGH) + TO_EVEN) - TO_EVEN


@triton.jit
def half(value):
    """The nearest fp16 number, as float32; never 0 for what is not 0."""
    rounded = value.to(tl.float16).to(tl.float32)
    smallest = tl.where(value < 0, -HALF_SMALLEST, HALF_SMALLEST)
    return tl.where((rounded == 0) & (value != 0), smallest, rounded)


@triton.jit
def half_or(value, otherwise):
    """`half`, and `otherwise` where the value is too large for fp16."""
    fits = tl.abs(value) < HALF_OVERFLOW
    return tl.where(fits, half(tl.where(fits, value, 0.0)), otherwise)


@triton.jit
def in_order(value, N: tl.constexpr):
    """The sum of each N neighbours, from the first on, for all of them."""
    lane = tl.arange(0, value.shape[0])
    first = lane - lane % N
    total = tl.zeros_like(value)
    for i in tl.static_range(0, N):
        total += tl.gather(value, first + i, 0)
    return total


@triton.jit
def pick(VALUES: tl.constexpr, N: tl.constexpr, index):
    """VALUES[index] for an index known only at run time."""
    value = 0.0
    for i in tl.static_range(0, N):
        value = tl.where(index == i, VALUES[i], value)
    return value


@triton.jit
def fit(x, weight, inverse, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The scale that fits the codes of x * inverse best, and its gain."""
    cross = tl.zeros_like(x[0])
    square = cross
    for i in tl.static_range(0, len(x)):
        q = codes(x[i] * inverse, LOW, HIGH)
        wq = weight[i] * q
        cross += wq * x[i]
        square += wq * q
    scale = cross * reciprocal(square)
    return scale, cross * scale


@triton.jit
def error(x, weight, d, LOW: tl.constexpr, HIGH: tl.constexpr):
    """The weighted error of x under its nearest codes for the scale d."""
    inverse = reciprocal(d)
    result = tl.zeros_like(x[0])
    for i in tl.static_range(0, len(x)):
        off = d * codes(x[i] * inverse, LOW, HIGH) - x[i]
        result += weight[i] * off * off
    return result
