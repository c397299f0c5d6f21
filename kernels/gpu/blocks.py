"""Device functions that several kernels share: flags, rounding, and words put into file order.

Rounding is arithmetic here, for Triton's `libdevice` has no interpreter.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

INFINITY_BITS = tl.constexpr(0x7F800000)
HALF_INFINITY = tl.constexpr(0x7C00)
FP32_MIN = tl.constexpr(2.0**-126)


@triton.jit
def magnitude_bits(x):
    """|x| of float32 as int32, in the order of |x|; NaN and Inf are the values from `INFINITY_BITS` on."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def flag_blocks(flag, block, non_finite, out_of_range, overflow):
    """Lower `flag` to the first block of the worst kind: kind * 2^60 + block."""
    kind = tl.where(non_finite, 0, tl.where(out_of_range, 1, 2)).to(tl.int64)
    tl.atomic_min(flag + tl.zeros_like(block), (kind << 60) + block, mask=non_finite | out_of_range | overflow)


@triton.jit
def is_half_infinity(half):
    """Whether the bits of an fp16 number, int16, say infinity of either sign."""
    return (half & 0x7FFF) == HALF_INFINITY


@triton.jit
def half_bits(d):
    """float32 -> the bits of the nearest fp16 number, int16."""
    return d.to(tl.float16).to(tl.int16, bitcast=True)


@triton.jit
def round_away(x):
    """To the nearest whole number, halves away from zero, as C's roundf; int32, for |x| < 2^31.

    By way of an integer, since `tl.floor` flushes subnormals.
    """
    size = tl.abs(x)
    whole = size.to(tl.int32)
    whole += (size - whole.to(tl.float32) >= 0.5).to(tl.int32)
    return tl.where(x < 0, -whole, whole)


@triton.jit
def normal_reciprocal(d):
    """1 / d, and 0 where d is subnormal or 0: it has no finite reciprocal to rely on, and is 0 in fp16."""
    usable = tl.abs(d) >= FP32_MIN
    return tl.where(usable, tl.div_rn(1.0, tl.where(usable, d, 1.0)), 0.0)


@triton.jit
def store_scale_and_words(packed, first, n_blocks, scales, words):
    """Write int16 blocks | scale | W words | from `first` on, given int16[B] and int16[B, W].

    The gathers put the run of B * (W + 1) words into file order, in two pieces whose lengths are powers of two, so that
    a thread stores 16 adjacent bytes. Only a last, partial program pays for a mask, which makes stores narrow.
    """
    B: tl.constexpr = words.shape[0]
    W: tl.constexpr = words.shape[1]
    packed += first * (W + 1)
    flat = tl.reshape(words, (B * W,))
    body = _in_file_order(scales, flat, tl.arange(0, B * W), W)
    tail = _in_file_order(scales, flat, tl.arange(0, B) + B * W, W)
    if first + B <= n_blocks:
        tl.store(packed + tl.arange(0, B * W), body)
        tl.store(packed + B * W + tl.arange(0, B), tail)
    else:
        n_words = (n_blocks - first) * (W + 1)
        tl.store(packed + tl.arange(0, B * W), body, mask=tl.arange(0, B * W) < n_words)
        tl.store(packed + B * W + tl.arange(0, B), tail, mask=tl.arange(0, B) + B * W < n_words)


@triton.jit
def _in_file_order(scales, words, place, W: tl.constexpr):
    """Word `place` of the run | scale | W words | scale | ..."""
    block = place // (W + 1)
    within = place % (W + 1)
    word = tl.gather(words, tl.maximum(block * W + within - 1, 0), 0)
    return tl.where(within == 0, tl.gather(scales, block, 0), word)
