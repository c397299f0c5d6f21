"""fp16 and bf16 inside numba kernels, which have no such types: exact integer steps on the bits of a float32.

    fp16  | sign: 1 | exponent: 5, bias 15  | fraction: 10 |
    fp32  | sign: 1 | exponent: 8, bias 127 | fraction: 23 |

Branches are selects, so LLVM vectorises loops over these. Rounding is to nearest, half to even, by integer addition; for
fp16's subnormal numbers by one float addition that pushes the spare bits out. No float operation meets a subnormal
fp32, so a process that flushes those to zero gets the same numbers.
"""

from __future__ import annotations

import numpy as np

from .jit import jit

SIGN = np.uint32(0x80000000)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITY = np.uint32(0x7F800000)
REBIAS = np.uint32((127 - 15) << 23)
ONE, BITS13, BITS16 = np.uint32(1), np.uint32(13), np.uint32(16)
HALF_SIGN, HALF_MAGNITUDE, HALF_INFINITY = np.uint32(0x8000), np.uint32(0x7FFF), np.uint32(0x7C00)
ROUND13, ROUND16 = np.uint32(0xFFF), np.uint32(0x7FFF)
SMALLEST_NORMAL, SMALLEST_NORMAL_BITS = np.float32(2.0**-14), np.uint32((127 - 14) << 23)
HALF_LIMIT, HALF_OVERFLOW_BITS = np.float32(65520.0), np.uint32(0x477FF000)  # from here on fp16 rounds to infinity
PUSH, PUSH_BITS = np.float32(0.5), np.uint32((127 - 1) << 23)  # the last fraction bit of 0.5 is 2^-24, fp16's least


@jit
def widen_half(bits: np.uint32) -> np.float32:
    """fp16 bits -> float32, exactly; infinities and NaN stay what they are."""
    magnitude = np.uint32((bits & HALF_MAGNITUDE) << BITS13)
    exponent = np.uint32(bits & HALF_INFINITY)
    subnormal = np.float32(np.uint32(magnitude + SMALLEST_NORMAL_BITS).view(np.float32) - SMALLEST_NORMAL)
    result = np.uint32(magnitude + REBIAS) if exponent != np.uint32(0) else subnormal.view(np.uint32)
    result = np.uint32(magnitude | INFINITY) if exponent == HALF_INFINITY else np.uint32(result)
    value: np.float32 = np.uint32(result | np.uint32(bits & HALF_SIGN) << BITS16).view(np.float32)
    return value


@jit
def narrow_half(value: np.float32) -> np.uint32:
    """float32 -> fp16 bits; from 65520 on infinity, and NaN becomes infinity too: callers refuse both beforehand."""
    bits = np.float32(value).view(np.uint32)
    magnitude = np.uint32(bits & MAGNITUDE)
    odd = np.uint32(np.uint32(magnitude >> BITS13) & ONE)
    normal = np.uint32(np.uint32(magnitude - REBIAS + ROUND13 + odd) >> BITS13)
    pushed = np.float32(np.uint32(magnitude).view(np.float32) + PUSH)
    result = np.uint32(pushed.view(np.uint32) - PUSH_BITS) if magnitude < SMALLEST_NORMAL_BITS else normal
    result = HALF_INFINITY if magnitude >= HALF_OVERFLOW_BITS else np.uint32(result)
    narrowed: np.uint32 = np.uint32(result | np.uint32(bits & SIGN) >> BITS16)
    return narrowed


@jit
def round_scale(value: np.float32) -> np.float32:
    """The nearest fp16 number, as float32; never 0 for what is not 0."""
    bits = narrow_half(value)
    lost = np.uint32(bits & HALF_MAGNITUDE) == np.uint32(0) and value != np.float32(0)
    return widen_half(np.uint32(bits | ONE) if lost else bits)


@jit
def narrow_bfloat(bits: np.uint32) -> np.uint32:
    """float32 bits, finite -> bf16 bits; too large becomes infinity."""
    odd = np.uint32(np.uint32(bits >> BITS16) & ONE)
    narrowed: np.uint32 = np.uint32(np.uint32(bits + ROUND16 + odd) >> BITS16)
    return narrowed
