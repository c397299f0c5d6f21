"""What TQ1_0 and TQ2_0 share: 256 weights are -1, 0 or 1 under one fp16 scale, the largest magnitude among them.

d = max|x|,  trit[i] = round(x[i] / d) + 1, halves away from zero, by the float32 d before it becomes fp16
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .blocks import INFINITY_BITS, flag_blocks, half_bits, is_half_infinity, normal_reciprocal


@triton.jit
def scale(bits, block, flag):
    """The bits of max|x|, int32[B] -> (d as the bits of fp16, int16[B]; 1 / d float32[B])."""
    d = bits.to(tl.float32, bitcast=True)
    half = half_bits(d)
    flag_blocks(flag, block, bits >= INFINITY_BITS, bits < 0, is_half_infinity(half))
    return half, normal_reciprocal(d)


@triton.jit
def trits(x, inverse):
    """Weights, and 1 / d of their shape -> 0, 1 or 2, int32."""
    scaled = x * inverse
    return 1 + (scaled >= 0.5).to(tl.int32) - (scaled <= -0.5).to(tl.int32)
