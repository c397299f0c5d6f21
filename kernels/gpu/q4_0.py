"""Q4_0 on a GPU: 32 weights share one fp16 scale, each is a nibble.

    block = | d: fp16 | 16 bytes |            18 bytes, which the kernels see as 9 16-bit words
    byte i holds codes[i] (low nibble) and codes[i + 16] (high nibble)
    weight[i] = d * (codes[i] - 8),   d = m / -8 where m is the weight of largest magnitude, the first of equals

Same bytes as the reference. Source: ggml, quantize_row_q4_0_ref; with importance, quantize_row_q4_0_impl.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import Q4_0
from ..reference import q4_0 as reference
from . import launch
from .blocks import (
    INFINITY_BITS,
    flag_blocks,
    half_bits,
    is_half_infinity,
    magnitude_bits,
    normal_reciprocal,
    store_scale_and_words,
)
from .search import (
    codes,
    columns,
    error,
    extremes,
    fit,
    half,
    half_or,
    load_block,
    out_of_range,
    pick,
    reciprocal,
    signed_extreme,
    sum_of_squares,
)

DTYPE = Q4_0
GRID = tl.constexpr(tuple(float(g) for g in reference.GRID))
OFFSETS = tl.constexpr(tuple(float(g) for g in reference.OFFSETS))
N_GRID, N_OFFSETS = tl.constexpr(len(reference.GRID)), tl.constexpr(len(reference.OFFSETS))
BLEND = tl.constexpr(float(reference.BLEND))


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    column = tl.arange(0, 32)[None, :]
    x = tl.load(rows + first * 32 + (block[:, None] * 32 + column), mask=inside[:, None], other=0.0).to(tl.float32)

    sizes = magnitude_bits(x)
    bits = tl.max(sizes, axis=1)
    # the first of the largest decides the sign: its column and sign in one number
    place = tl.where(sizes == bits[:, None], column * 2 + (x < 0).to(tl.int32), 64)
    largest = bits.to(tl.float32, bitcast=True)
    d = tl.where((tl.min(place, axis=1) & 1) == 1, largest, -largest) * 0.125
    half = half_bits(d)
    flag_blocks(flag, first + block, bits >= INFINITY_BITS, bits < 0, is_half_infinity(half))

    code = tl.minimum((x * normal_reciprocal(d)[:, None] + 8.5).to(tl.int32), 15)
    even, odd = tl.split(tl.reshape(code, (BLOCKS, 16, 2)))
    low, high = tl.split(tl.permute(tl.reshape(even | (odd << 8), (BLOCKS, 2, 8)), (0, 2, 1)))
    store_scale_and_words(packed, first, n_blocks, half, (low | (high << 4)).to(tl.int16))


@triton.jit(do_not_specialize=["n_rows", "row_blocks"])
def _mean_square(rows, mean, n_rows, row_blocks, BLOCKS: tl.constexpr):
    """One row a thread: float32 sums of blocks, added in float64 in order."""
    row = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = row < n_rows
    total = tl.zeros((BLOCKS,), tl.float64)
    for i in range(0, row_blocks):
        total += sum_of_squares(load_block(rows + (row * row_blocks + i) * 32, inside, 32, 5)).to(tl.float64)
    tl.store(mean + row, (total / (row_blocks * 32)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n_blocks", "row_blocks"])
def _encode_weighted(rows, packed, flag, n_blocks, importance, mean, row_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < n_blocks
    row = block // row_blocks
    x = load_block(rows + block * 32, inside, 32, 5)
    low, high, finite = extremes(x)
    weight = _weights(
        x, importance + (block - row * row_blocks) * 32, tl.load(mean + row, mask=inside, other=0.0), inside
    )

    inverse = reciprocal(signed_extreme(low, high))
    gain = tl.zeros_like(inverse)
    scale, chosen = gain, gain
    for step in range(0, N_GRID + N_OFFSETS):
        g = tl.where(step < N_GRID, pick(GRID, N_GRID, step), chosen + pick(OFFSETS, N_OFFSETS, step - N_GRID))
        fitted, explained = fit(x, weight, g * inverse, -8, 7)
        better = explained > gain
        gain = tl.where(better, explained, gain)
        scale = tl.where(better, fitted, scale)
        chosen = tl.where(better & (step < N_GRID), g, chosen)
    d = half(scale)
    overflow = is_half_infinity(half_bits(d))
    flag_blocks(flag, block, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    again, _ = fit(x, weight, reciprocal(d), -8, 7)
    again = half_or(again, d)
    d = tl.where(error(x, weight, again, -8, 7) < error(x, weight, d, -8, 7), again, d)
    tl.store(packed + block * 9, half_bits(d), mask=inside)
    inverse = reciprocal(d)
    words = ()
    for i in tl.static_range(0, 16, 2):
        word = _nibble(x[i], inverse) | (_nibble(x[i + 16], inverse) << 4)
        words += (word | (_nibble(x[i + 1], inverse) << 8) | (_nibble(x[i + 17], inverse) << 12),)
    place = packed + (block * 9)[:, None] + (1 + tl.arange(0, 8)[None, :])
    tl.store(place, columns(words, 3).to(tl.int16), mask=inside[:, None])


@triton.jit
def _weights(x, importance, mean, inside):
    """importance * sqrt(mean + x^2) + BLEND * sqrt(mean), for the row's mean of x^2."""
    given = load_block(importance, inside, 32, 5)
    blend = BLEND * tl.sqrt_rn(mean)
    weight = ()
    for i in tl.static_range(0, 32):
        weight += (given[i] * tl.sqrt_rn(mean + x[i] * x[i]) + blend,)
    return weight


@triton.jit
def _nibble(x, inverse):
    return codes(x * inverse, -8, 7).to(tl.int32) + 8


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    packed += first * 9
    d = tl.load(packed + block * 9, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    column = tl.arange(0, 32)[None, :]
    word = tl.load(packed + (block[:, None] * 9 + 1 + (column % 16) // 2), mask=inside[:, None], other=0).to(tl.int32)
    code = (word >> (8 * (column % 2) + 4 * (column // 16))) & 15
    out = ((code - 8).to(tl.float32) * d[:, None]).to(weights.dtype.element_ty)
    tl.store(weights + first * 32 + (block[:, None] * 32 + column), out, mask=inside[:, None])


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 128, 4)
ENCODE_WEIGHTED = launch.Launch(
    _encode_weighted, {**ENCODE.types, "importance": "*fp32", "mean": "*fp32", "row_blocks": "i64"}, 128, 4
)
MEAN_SQUARE = launch.Launch(
    _mean_square, {"rows": "rows", "mean": "*fp32", "n_rows": "i64", "row_blocks": "i64"}, 32, 1
)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 128, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 32 * 18] uint8.

    `importance` is float32[columns] or None. NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    if importance is None:
        return launch.encode(ENCODE, DTYPE, rows)
    return launch.encode(
        ENCODE_WEIGHTED, DTYPE, rows, launch.importance_of(rows, importance), _means(rows), rows.shape[1] // 32
    )


def _means(rows: torch.Tensor) -> torch.Tensor:
    """float[n, columns] -> float32[n], the mean of x^2 of each row."""
    mean = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    if rows.numel():
        MEAN_SQUARE(rows.shape[0], rows.contiguous(), mean, rows.shape[0], rows.shape[1] // 32)
    return mean


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 32 * 18] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
