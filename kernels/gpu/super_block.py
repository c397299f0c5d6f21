"""Device functions that the super-block types share: 256 weights as J blocks of W, under one or two fp16 numbers."""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_value(bits):
    """The fp16 number in the low 16 bits of an integer -> float32."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def store_weights(weights, first, inside, values):
    """float32[S, J, W] -> the super-blocks `first` and up of `weights`, in its type; `inside` [S] says which exist."""
    S: tl.constexpr = values.shape[0]
    J: tl.constexpr = values.shape[1]
    W: tl.constexpr = values.shape[2]
    place = tl.arange(0, J)[None, :, None] * W + tl.arange(0, W)[None, None, :]
    place += tl.arange(0, S)[:, None, None] * (J * W)
    tl.store(weights + first * (J * W) + place, values.to(weights.dtype.element_ty), mask=inside[:, None, None])


@triton.jit
def neighbours(value, LOG: tl.constexpr):
    """[R] -> 2^LOG vectors [R]: the first, second, ... of the 2^LOG neighbours around each element."""
    J: tl.constexpr = 2**LOG
    R: tl.constexpr = value.shape[0]
    table = tl.broadcast_to(tl.reshape(value, (R // J, 1, J)), (R // J, J, J))
    parts = (tl.reshape(table, (R, J)),)
    # part k holds the elements k, k + n, k + 2n, ... of n parts; halving each keeps that true
    for level in tl.static_range(0, LOG):
        evens = ()
        odds = ()
        for k in tl.static_range(0, 2**level):
            if level == LOG - 1:
                even, odd = tl.split(parts[k])
            else:
                even, odd = tl.split(tl.reshape(parts[k], (R, J // 2 ** (level + 1), 2)))
            evens += (even,)
            odds += (odd,)
        parts = evens + odds
    return parts


@triton.jit
def sum_in_order(value, LOG: tl.constexpr):
    """The sum of each 2^LOG neighbours, from the first on, for all of them."""
    parts = neighbours(value, LOG)
    total = tl.zeros_like(value)
    for j in tl.static_range(0, 2**LOG):
        total += parts[j]
    return total


@triton.jit
def least_of(value, LOG: tl.constexpr):
    """The least of each 2^LOG neighbours, for all of them."""
    J: tl.constexpr = 2**LOG
    S: tl.constexpr = value.shape[0] // J
    least = tl.min(tl.reshape(value, (S, J)), axis=1)
    return tl.reshape(tl.broadcast_to(least[:, None], (S, J)), (S * J,))
