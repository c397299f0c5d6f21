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
def flag_run(flag, first, bits, OVERFLOW: tl.constexpr):
    """`flag_blocks` for numbers that are blocks of their own, given as `magnitude_bits`: beyond range from `OVERFLOW` on."""
    if tl.max(bits, axis=0) >= OVERFLOW:
        kind = tl.where(bits >= INFINITY_BITS, 0, 1).to(tl.int64)
        place = first + tl.arange(0, bits.shape[0])
        tl.atomic_min(flag, tl.min(tl.where(bits >= OVERFLOW, (kind << 60) + place, 1 << 62), axis=0))


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
def widen(values):
    """Any float type -> float32, exactly; bfloat16 by its bits, for the interpreter widens its subnormals wrongly."""
    if values.dtype == tl.bfloat16:
        wide = (values.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = values.to(tl.float32)
    return wide


@triton.jit
def load_tile(rows, first, inside, WIDTH: tl.constexpr):
    """Blocks of WIDTH from `first` on, float32[B, WIDTH], 0 where a block is not `inside`."""
    place = tl.arange(0, inside.shape[0])[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    return widen(tl.load(rows + first * WIDTH + place, mask=inside[:, None], other=0.0))


@triton.jit
def store_tile(weights, first, inside, tile):
    """What `load_tile` reads, rounded to the type behind `weights`."""
    WIDTH: tl.constexpr = tile.shape[1]
    place = tl.arange(0, inside.shape[0])[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(weights + first * WIDTH + place, tile.to(weights.dtype.element_ty), mask=inside[:, None])


@triton.jit
def load_run(start, first, n, N: tl.constexpr):
    """N numbers from `first` on, 0 from the `n`th on; only a last, partial run pays for a mask, which makes loads narrow."""
    place = first + tl.arange(0, N)
    if first + N <= n:
        values = tl.load(start + place)
    else:
        values = tl.load(start + place, mask=place < n, other=0)
    return values


@triton.jit
def store_run(start, first, n, values):
    """What `load_run` reads."""
    place = first + tl.arange(0, values.shape[0])
    if first + values.shape[0] <= n:
        tl.store(start + place, values)
    else:
        tl.store(start + place, values, mask=place < n)


@triton.jit
def paired_nibbles(code):
    """Codes of 4 bits, int32[B, 2 n] -> bytes int32[B, n]: codes i (low) and i + n (high)."""
    n: tl.constexpr = code.shape[1] // 2
    low, high = tl.split(tl.permute(tl.reshape(code, (code.shape[0], 2, n)), (0, 2, 1)))
    return low | (high << 4)


@triton.jit
def words_of(byte, PER: tl.constexpr):
    """Bytes int32[B, n * PER] -> little-endian words of PER bytes, int32[B, n]."""
    shift = 8 * tl.arange(0, PER)[None, None, :]
    return tl.sum(tl.reshape(byte, (byte.shape[0], byte.shape[1] // PER, PER)) << shift, axis=2)


@triton.jit
def store_blocks(packed, first, n_blocks, heads, words, tails):
    """Write blocks | heads | words | tails | from `first` on, given tuples of [B] and [B, N], all of the word's type.

    The gathers put the run of B * W words into file order, in pieces whose lengths are powers of two, so that
    a thread stores up to 16 adjacent bytes. Only a last, partial program pays for a mask, which makes stores narrow.
    """
    B: tl.constexpr = words.shape[0]
    W: tl.constexpr = len(heads) + words.shape[1] + len(tails)
    packed += first * W
    flat = tl.reshape(words, (B * words.shape[1],))
    whole = first + B <= n_blocks
    n_words = (n_blocks - first) * W
    for bit in tl.static_range(0, 7):
        if W & (1 << bit):
            place = tl.arange(0, B << bit) + (W >> (bit + 1) << (bit + 1)) * B
            word = _in_file_order(heads, flat, tails, place, W)
            if whole:
                tl.store(packed + place, word)
            else:
                tl.store(packed + place, word, mask=place < n_words)


@triton.jit
def _in_file_order(heads, words, tails, place, W: tl.constexpr):
    """Word `place` of the run | heads | words | tails | heads | ..."""
    H: tl.constexpr = len(heads)
    N: tl.constexpr = W - H - len(tails)
    block = place // W
    within = place % W
    word = tl.gather(words, block * N + tl.minimum(tl.maximum(within - H, 0), N - 1), 0)
    for i in tl.static_range(0, H):
        word = tl.where(within == i, tl.gather(heads[i], block, 0), word)
    for i in tl.static_range(0, len(tails)):
        word = tl.where(within == H + N + i, tl.gather(tails[i], block, 0), word)
    return word
