"""The search of Q3_K, IQ4_XS and their kind, one block a thread: `reference/symmetric.py`, operation by operation.

A block is a tuple of vectors, as in search.py; the J neighbours of a super-block lie in neighbouring threads. Codes are not
kept during the search: they follow from the scales. Levels of a type that has a table of them are looked up in it.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..reference import symmetric as reference
from .blocks import flag_blocks, half_bits, is_half_infinity
from .search import codes, extremes, half, half_or, out_of_range, pick, reciprocal, signed_extreme, sum_of_squares
from .super_block import least_of, neighbours, sum_in_order


class Symmetric(NamedTuple):
    """`reference.Symmetric` as Python numbers, which is what a kernel can take as constants."""

    blocks: int
    log_blocks: int
    low: float
    high: float
    tabled: bool
    scale_low: float
    scale_high: float
    tops: tuple[float, ...]
    grid: tuple[float, ...]
    neighbours: tuple[float, ...]
    even: float
    blend: float
    rooted: bool


def constants(given: reference.Symmetric) -> tl.constexpr:
    """For the parameter FORMAT of the functions here."""
    return tl.constexpr(
        Symmetric(
            blocks=given.blocks,
            log_blocks=given.blocks.bit_length() - 1,
            low=float(given.low),
            high=float(given.high),
            tabled=len(given.nearest) > 0,
            scale_low=float(given.scale_low),
            scale_high=float(given.scale_high),
            tops=tuple(float(top) for top in given.tops),
            grid=tuple(float(g) for g in given.grid),
            neighbours=tuple(float(k) for k in given.neighbours),
            even=float(given.even),
            blend=float(given.blend),
            rooted=given.rooted,
        )
    )


@triton.jit
def plain_weights(x, FORMAT: tl.constexpr):
    """Without importance."""
    SHARE: tl.constexpr = 1 / (FORMAT.value.blocks * len(x))  # a power of two: the product is the quotient
    even = FORMAT.value.even * (sum_in_order(sum_of_squares(x), FORMAT.value.log_blocks) * SHARE)
    weight = ()
    for i in tl.static_range(0, len(x)):
        weight += (x[i] * x[i] + even,)
    return weight


@triton.jit
def importance_weights(x, given, FORMAT: tl.constexpr):
    """With importance relative to its mean."""
    weight = ()
    if FORMAT.value.rooted:
        SHARE: tl.constexpr = 2 / (FORMAT.value.blocks * len(x))
        twice_mean = sum_in_order(sum_of_squares(x), FORMAT.value.log_blocks) * SHARE
        even = FORMAT.value.blend * tl.sqrt_rn(twice_mean)
        for i in tl.static_range(0, len(x)):
            weight += (given[i] * tl.sqrt_rn(twice_mean + x[i] * x[i]) + even,)
    else:
        for i in tl.static_range(0, len(x)):
            weight += (given[i] + FORMAT.value.blend,)
    return weight


@triton.jit
def search(x, weight, table, flag, block, n_blocks, FORMAT: tl.constexpr):
    """Steps 1 to 3 -> d and the integer scale of each block. `block` counts blocks, of which J neighbours share d."""
    J: tl.constexpr = FORMAT.value.blocks
    LOG: tl.constexpr = FORMAT.value.log_blocks
    low, high, finite = extremes(x)
    scale, mass = _fit_block(x, weight, reciprocal(signed_extreme(low, high)), table, FORMAT)
    largest = signed_extreme(least_of(scale, LOG), -least_of(-scale, LOG))
    first = half(tl.div_rn(largest, FORMAT.value.tops[0]))
    overflow = is_half_infinity(half_bits(first))
    inside = block < n_blocks * J
    flag_blocks(flag, block // J, inside & ~finite, inside & out_of_range(low, high), inside & overflow)
    d = _fit_super(scale, mass, largest, first, FORMAT)
    return d, _round_scales(x, weight, scale, d, table, FORMAT)


@triton.jit
def level(value, table, FORMAT: tl.constexpr):
    """The level nearest to a value; float32."""
    if FORMAT.value.tabled:
        nearest = tl.load(table + place(value, FORMAT))
    else:
        nearest = codes(value, FORMAT.value.low, FORMAT.value.high)
    return nearest


@triton.jit
def place(value, FORMAT: tl.constexpr):
    """Where a value lies in the table of the levels; at its start for NaN, which `tl.maximum` drops."""
    return ((tl.minimum(tl.maximum(value, FORMAT.value.low), FORMAT.value.high) - FORMAT.value.low) * 2.0).to(tl.int32)


@triton.jit
def _fit_block(x, weight, inverse, table, FORMAT: tl.constexpr):
    """Step 1 -> the scale of each block, with its sign, and its mass."""
    N_GRID: tl.constexpr = len(FORMAT.value.grid)
    best = tl.zeros_like(inverse)
    scale, mass = best, best
    for step in range(0, N_GRID):
        tried = pick(FORMAT.value.grid, N_GRID, step) * inverse
        cross = tl.zeros_like(inverse)
        square = cross
        for i in tl.static_range(0, len(x)):
            q = level(x[i] * tried, table, FORMAT)
            wq = weight[i] * q
            cross += wq * x[i]
            square += wq * q
        fitted = cross * reciprocal(square)
        gain = cross * fitted
        better = gain > best
        best = tl.where(better, gain, best)
        scale = tl.where(better, fitted, scale)
        mass = tl.where(better, square, mass)
    return scale, mass


@triton.jit
def _fit_super(scale, mass, largest, first, FORMAT: tl.constexpr):
    """Step 2 -> the d that fits the blocks' scales best, on an fp16 number; `first` where nothing is to fit.

    Every thread of a super-block knows all of its blocks and tries the tops of its own turn.
    """
    J: tl.constexpr = FORMAT.value.blocks
    LOG: tl.constexpr = FORMAT.value.log_blocks
    N_TOPS: tl.constexpr = len(FORMAT.value.tops)
    turn = tl.arange(0, scale.shape[0]) % J
    scales, masses = neighbours(scale, LOG), neighbours(mass, LOG)
    best = tl.zeros_like(scale)
    d = best
    chosen = turn
    inverse = reciprocal(largest)
    for at in range(0, N_TOPS, J):
        factor = pick(FORMAT.value.tops, N_TOPS, at + turn) * inverse  # 0 beyond the last: never better
        cross = tl.zeros_like(scale)
        square = cross
        for j in tl.static_range(0, J):
            k = codes(scales[j] * factor, FORMAT.value.scale_low, FORMAT.value.scale_high)
            cross += masses[j] * scales[j] * k
            square += masses[j] * k * k
        fitted = cross * reciprocal(square)
        gain = cross * fitted
        better = gain > best
        best = tl.where(better, gain, best)
        d = tl.where(better, fitted, d)
        chosen = tl.where(better, at + turn, chosen)
    earliest = least_of(tl.where(best == -least_of(-best, LOG), chosen, N_TOPS + J), LOG)
    d = least_of(tl.where(chosen == earliest, d, float("inf")), LOG)
    return half_or(tl.where(d != 0, d, first), first)


@triton.jit
def _round_scales(x, weight, scale, d, table, FORMAT: tl.constexpr):
    """Step 3 -> the integer scales."""
    N_NEIGHBOURS: tl.constexpr = len(FORMAT.value.neighbours)
    nearest = codes(scale * reciprocal(d), FORMAT.value.scale_low, FORMAT.value.scale_high)
    least = tl.full(d.shape, float("inf"), tl.float32)
    scales = tl.zeros_like(d)
    for k in range(0, N_NEIGHBOURS):
        tried = nearest + pick(FORMAT.value.neighbours, N_NEIGHBOURS, k)
        tried = tl.minimum(tl.maximum(tried, FORMAT.value.scale_low), FORMAT.value.scale_high)
        step = d * tried
        inverse = reciprocal(step)
        error = tl.zeros_like(d)
        for i in tl.static_range(0, len(x)):
            off = step * level(x[i] * inverse, table, FORMAT) - x[i]
            error += weight[i] * off * off
        better = error < least
        least = tl.where(better, error, least)
        scales = tl.where(better, tried, scales)
    return scales
