"""32 codes of 5 bits in 20 bytes, as Q5_0 and Q5_1 store them.

| 4 bytes: bit i of the little-endian word is code i's fifth bit | 16 bytes: nibbles of codes i (low) and i + 16 (high) |
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fifth_bits(code):
    """Codes int32[B, 32] -> the word of their fifth bits, int32[B]."""
    return tl.sum((code >> 4) << tl.arange(0, 32)[None, :], axis=1)


@triton.jit
def with_fifth_bits(nibble, word):
    """Nibbles int32[B, 32] and the words int32[B, 1] of their fifth bits -> codes."""
    return nibble | (((word >> tl.arange(0, 32)[None, :]) & 1) << 4)
