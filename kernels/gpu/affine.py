"""The search of Q2_K, Q5_K and their kind, one block a thread: `reference/affine.py`, operation by operation.

A block is a tuple of vectors, as in search.py; the J neighbours of a super-block lie in neighbouring threads. Codes are not
kept during the search: they follow from the scales.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ..reference import affine as reference
from ..reference.search import ONE
from .blocks import flag_blocks, half_bits, is_half_infinity
from .search import TINY, codes, extremes, half, half_or, out_of_range, pick, reciprocal, sum_of_squares
from .super_block import least_of, sum_in_order


class Affine(NamedTuple):
    """`reference.Affine` as Python numbers, which is what a kernel can take as constants; its `highest` is 0."""

    blocks: int
    log_blocks: int
    top: float
    scale_top: float
    grid: tuple[float, ...]
    grid_inverse: tuple[float, ...]
    edges: tuple[float, ...]
    neighbours: tuple[float, ...]
    again: tuple[float, ...]
    even: float
    blend: float
    over: float
    stretch: float


def constants(given: reference.Affine) -> tl.constexpr:
    """For the parameter FORMAT of the functions here."""
    return tl.constexpr(
        Affine(
            blocks=given.blocks,
            log_blocks=given.blocks.bit_length() - 1,
            top=float(given.top),
            scale_top=float(given.scale_top),
            grid=tuple(float(g) for g in given.grid),
            grid_inverse=tuple(float(ONE / g) for g in given.grid),
            edges=tuple(float(e) for e in given.edges),
            neighbours=tuple(float(k) for k in given.neighbours),
            again=tuple(float(k) for k in given.again),
            even=float(given.even),
            blend=float(given.blend),
            over=float(given.over),
            stretch=float(given.stretch),
        )
    )


@triton.jit
def plain_weights(x, FORMAT: tl.constexpr):
    """Without importance."""
    SHARE: tl.constexpr = 1 / len(x)  # a power of two: the product is the quotient
    even = FORMAT.value.even * tl.sqrt_rn(sum_of_squares(x) * SHARE)
    weight = ()
    for i in tl.static_range(0, len(x)):
        weight += (even + tl.abs(x[i]),)
    return weight


@triton.jit
def importance_weights(x, given, FORMAT: tl.constexpr):
    """With importance relative to its mean."""
    SHARE: tl.constexpr = 1 / FORMAT.value.over
    mean = sum_in_order(sum_of_squares(x), FORMAT.value.log_blocks) * SHARE
    blend = FORMAT.value.blend * tl.sqrt_rn(mean)
    weight = ()
    for i in tl.static_range(0, len(x)):
        weight += (given[i] * tl.sqrt_rn(mean + x[i] * x[i]) + blend,)
    return weight


@triton.jit
def search(x, weight, flag, block, n_blocks, FORMAT: tl.constexpr):
    """Steps 1 to 3 -> d, dmin, and the integer scale and min of each block. `block` counts blocks; J neighbours share d."""
    J: tl.constexpr = FORMAT.value.blocks
    LOG: tl.constexpr = FORMAT.value.log_blocks
    low, high, finite = extremes(x)
    sum_w = tl.zeros_like(low)
    sum_wx = sum_w
    for i in tl.static_range(0, len(x)):
        sum_w += weight[i]
        sum_wx += weight[i] * x[i]
    inverse_w = reciprocal(sum_w)
    mean = sum_wx * inverse_w
    scale, bottom = _fit_block(x, weight, sum_w, inverse_w, mean, tl.minimum(low, 0.0), high, FORMAT)

    d = half(tl.div_rn(-least_of(-scale, LOG), FORMAT.value.scale_top))
    dmin = half(tl.div_rn(-least_of(bottom, LOG), FORMAT.value.scale_top))
    overflow = is_half_infinity(half_bits(d)) | is_half_infinity(half_bits(dmin))
    inside = block < n_blocks * J
    flag_blocks(flag, block // J, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    scales, mins, error = _round_scales(
        x, weight, inverse_w, mean, scale, bottom, d, dmin, FORMAT.value.neighbours, FORMAT
    )
    new_d, new_dmin = _fit_super(x, weight, sum_w, mean, scales, mins, d, dmin, FORMAT)
    tried, tried_min, tried_error = _round_scales(
        x, weight, inverse_w, mean, scale, bottom, new_d, new_dmin, FORMAT.value.again, FORMAT
    )
    better = sum_in_order(tried_error, LOG) < sum_in_order(error, LOG)
    return (
        tl.where(better, new_d, d),
        tl.where(better, new_dmin, dmin),
        tl.where(better, tried, scales),
        tl.where(better, tried_min, mins),
    )


@triton.jit
def stretched(scale, FORMAT: tl.constexpr):
    """Step 4: what is stored for d or dmin. Codes follow from what it was before."""
    return half_or(scale * FORMAT.value.stretch, scale)


@triton.jit
def code(x, d, dmin, scales, mins, FORMAT: tl.constexpr):
    """The codes of a block under its scales, a tuple of int32 vectors."""
    under = dmin * mins
    inverse = reciprocal(d * scales)
    found = ()
    for i in tl.static_range(0, len(x)):
        found += (codes((x[i] + under) * inverse, 0, FORMAT.value.top).to(tl.int32),)
    return found


@triton.jit
def _fit_block(x, weight, sum_w, inverse_w, mean, bottom, top, FORMAT: tl.constexpr):
    """Step 1 -> (scale, low end <= 0)."""
    N_GRID: tl.constexpr = len(FORMAT.value.grid)
    N_EDGES: tl.constexpr = len(FORMAT.value.edges)
    span = top - bottom
    inverse_span = reciprocal(span)
    # Gains count from all codes 0 at the mean; where that is above 0, low is 0 and all of it is still to gain.
    positive = tl.maximum(mean, 0.0)
    best = -(positive * positive * sum_w)
    scale = tl.zeros_like(span)
    low = tl.minimum(mean, 0.0)
    for g in range(0, N_GRID):
        inverse = pick(FORMAT.value.grid, N_GRID, g) * inverse_span
        step = span * pick(FORMAT.value.grid_inverse, N_GRID, g)
        for e in range(0, N_EDGES):
            start = bottom + pick(FORMAT.value.edges, N_EDGES, e) * step
            sum_q = tl.zeros_like(scale)
            sum_qq = sum_q
            cross = sum_q
            for i in tl.static_range(0, len(x)):
                q = codes((x[i] - start) * inverse, 0, FORMAT.value.top)
                wq = weight[i] * q
                sum_q += wq
                sum_qq += wq * q
                cross += weight[i] * (x[i] - mean) * q
            mean_q = sum_q * inverse_w
            fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
            fitted_low = mean - fitted * mean_q
            through = cross + mean * sum_q
            fitted_through = through * reciprocal(sum_qq)
            above = fitted_low > 0
            gain = tl.where(above, through * fitted_through - mean * mean * sum_w, cross * fitted)
            better = gain > best
            best = tl.where(better, gain, best)
            scale = tl.where(better, tl.where(above, fitted_through, fitted), scale)
            low = tl.where(better, tl.where(above, 0.0, fitted_low), low)
    return scale, low


@triton.jit
def _round_scales(x, weight, inverse_w, mean, scale, low, d, dmin, NEIGHBOURS: tl.constexpr, FORMAT: tl.constexpr):
    """Step 2 -> (scale codes, min codes, each block's error)."""
    N_NEIGHBOURS: tl.constexpr = len(NEIGHBOURS)
    inverse_dmin = reciprocal(dmin)
    nearest = codes(scale * reciprocal(d), 0, FORMAT.value.scale_top)
    best = tl.full(scale.shape, float("inf"), tl.float32)
    scales = tl.zeros_like(scale)
    mins = scales
    for k in range(0, N_NEIGHBOURS):
        tried = nearest + pick(NEIGHBOURS, N_NEIGHBOURS, k)
        tried = tl.minimum(tl.maximum(tried, 0.0), FORMAT.value.scale_top)
        step = d * tried
        inverse = reciprocal(step)
        sum_q = tl.zeros_like(scale)
        for i in tl.static_range(0, len(x)):
            sum_q += weight[i] * codes((x[i] - low) * inverse, 0, FORMAT.value.top)
        tried_min = codes((step * (sum_q * inverse_w) - mean) * inverse_dmin, 0, FORMAT.value.scale_top)
        under = dmin * tried_min
        error = tl.zeros_like(scale)
        for i in tl.static_range(0, len(x)):
            off = (step * codes((x[i] + under) * inverse, 0, FORMAT.value.top) - under) - x[i]
            error += weight[i] * off * off
        better = error < best
        best = tl.where(better, error, best)
        scales = tl.where(better, tried, scales)
        mins = tl.where(better, tried_min, mins)
    return scales, mins, best


@triton.jit
def _fit_super(x, weight, sum_w, mean, scales, mins, d, dmin, FORMAT: tl.constexpr):
    """Step 3 -> (d, dmin) that fit the codes best, on fp16 numbers; as they were where nothing is to fit."""
    LOG: tl.constexpr = FORMAT.value.log_blocks
    under = dmin * mins
    inverse = reciprocal(d * scales)
    sum_q = tl.zeros_like(d)
    sum_qq = sum_q
    cross = sum_q
    for i in tl.static_range(0, len(x)):
        q = codes((x[i] + under) * inverse, 0, FORMAT.value.top)
        wq = weight[i] * q
        sum_q += wq
        sum_qq += wq * q
        cross += weight[i] * (x[i] - mean) * q
    cross = cross + mean * sum_q
    aa = sum_in_order(scales * scales * sum_qq, LOG)
    ab = sum_in_order(scales * mins * sum_q, LOG)
    bb = sum_in_order(mins * mins * sum_w, LOG)
    ax = sum_in_order(scales * cross, LOG)
    bx = sum_in_order(mins * (mean * sum_w), LOG)
    determinant = aa * bb - ab * ab
    both = determinant > 1e-5 * (aa * bb)
    inverse = tl.div_rn(1.0, tl.where(both, determinant, 1.0))
    new_d = tl.where(both, (ax * bb - bx * ab) * inverse, ax * reciprocal(aa))
    new_dmin = tl.where(both, (ax * ab - bx * aa) * inverse, dmin)
    sound = (new_d > TINY) & (new_dmin >= 0)
    return half_or(tl.where(sound, new_d, d), d), half_or(tl.where(sound, new_dmin, dmin), dmin)
