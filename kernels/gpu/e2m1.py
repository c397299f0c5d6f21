"""E2M1, the 4-bit float of MXFP4 and NVFP4, doubled so that its values are integers.

    code = | sign: 1 | magnitude: 3 |      magnitudes 0 1 2 3 4 6 8 12, here the nibbles of one word; code 8 is a second zero

The nearest value wins, the smaller magnitude of two equally near. Same codes as the reference.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from ..reference import e2m1 as reference

MIDDLES = tl.constexpr(tuple(float(middle) for middle in reference.MIDDLES))
MAGNITUDES = tl.constexpr(sum(value << 4 * i for i, value in enumerate(reference.MAGNITUDES)) - (1 << 32))


@triton.jit
def nearest(x, d):
    """float32[B, N] under steps float32[B] -> codes int32[B, N]; all 0 where the step is 0."""
    size = tl.abs(x)
    index = tl.zeros(x.shape, tl.int32)
    for i in tl.static_range(0, 7):
        index += (size > (MIDDLES[i] * d)[:, None]).to(tl.int32)
    index = tl.where((d > 0)[:, None], index, 0)
    return tl.where((x < 0) & (index > 0), index | 8, index)


@triton.jit
def doubled(code):
    """Codes int32 -> doubled values float32."""
    size = (MAGNITUDES >> (4 * (code & 7))) & 15
    return tl.where((code & 8) != 0, -size, size).to(tl.float32)
