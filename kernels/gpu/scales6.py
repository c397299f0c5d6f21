"""Eight scales and eight mins of 6 bits in three 32-bit words, as Q4_K and Q5_K store them: `reference/scales6.py`.

byte j of word 0 = | scale[j]: 6 | scale[j + 4] >> 4: 2 |       of word 1: the mins likewise       the lowest field first
byte j of word 2 = | scale[j + 4]: 4 | min[j + 4]: 4 |                                             j = 0..3
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from .super_block import half_value


@triton.jit
def load_scales(heads, inside):
    """Pointers to | d | dmin | scales | -> d * scale and dmin * min, float32[S, 8]: products of 17 bits, exact."""
    j = tl.arange(0, 8)[None, :]
    shift = (j % 4) * 8
    mask = inside[:, None]
    both = tl.load(heads, mask=inside, other=0)
    low = tl.load(heads[:, None] + 1 + j * 0, mask=mask, other=0) >> shift
    high = tl.load(heads[:, None] + 2 + j * 0, mask=mask, other=0) >> shift
    rest = tl.load(heads[:, None] + 3 + j * 0, mask=mask, other=0) >> shift
    scale = tl.where(j < 4, low & 63, (rest & 15) | ((low >> 2) & 48))
    minimum = tl.where(j < 4, high & 63, ((rest >> 4) & 15) | ((high >> 2) & 48))
    return half_value(both)[:, None] * scale.to(tl.float32), half_value(both >> 16)[:, None] * minimum.to(tl.float32)


@triton.jit
def scale_words(scales, mins):
    """float32[S, 8] twice -> the three words, int32[S]."""
    scale, minimum = scales.to(tl.int32), mins.to(tl.int32)
    j = tl.arange(0, 8)[None, :]
    shift = (j % 4) * 8
    return (
        tl.xor_sum(tl.where(j < 4, scale, (scale >> 4) << 6) << shift, axis=1),
        tl.xor_sum(tl.where(j < 4, minimum, (minimum >> 4) << 6) << shift, axis=1),
        tl.xor_sum(tl.where(j < 4, 0, (scale & 15) | ((minimum & 15) << 4)) << shift, axis=1),
    )
