"""The search that Q2_K, Q4_K and Q5_K share: blocks with a scale and a min under two fp16 numbers.

    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])      code 0..top, scale and min 0..scale_top

It minimises sum(w * (decoded - x)^2):

    1. each block alone: GRID x EDGES ranges of codes -> the scale and low end (<= 0) that fit best in closed form
    2. d = fp16(largest scale / scale_top), dmin = fp16(largest -low / scale_top); per block the rounded scale and its
       neighbours, each with the min that fits its codes, are tried exactly
    3. d and dmin are fitted to all codes of the super-block, step 2 again under them, with neighbours of its own; kept where
       the error is less
    4. what is stored is d and dmin times `stretch`: least squares makes every weight a little too small, and that adds up from
       layer to layer where noise does not (docs/quality.md)

The weights are ggml's, with importance made a little more even:

    w = even * rms of the block + |x|                                         without importance
    w = importance * sqrt(m + x^2) + blend * sqrt(m)                          with; m = sum(x^2) of the super-block / over
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..scheme import Rows
from .checks import refuse_scales, relative_importance
from .search import ONE, TINY, ZERO, Floats, codes, half_scale, half_scale_or, reciprocal, total

ELEMENTS = 256
NEIGHBOURS = tuple(np.float32(k) for k in (-1, 0, 1))


class Affine(NamedTuple):
    """What a format allows, and its tuned constants; the compiled search takes the same value."""

    blocks: int  # in a super-block of 256
    top: np.float32
    scale_top: np.float32
    grid: Floats  # codes that the block's range spans
    edges: Floats  # where code 0 lies, in steps above the block's minimum
    neighbours: Floats  # of the rounded scale, in step 2
    again: Floats  # and in step 3
    even: np.float32
    blend: np.float32
    over: np.float32
    highest: np.float32  # low end that can be stored
    stretch: np.float32 = ONE


@dataclass(frozen=True)
class Found:
    """One solution: float32 throughout, `d` and `dmin` on fp16 numbers."""

    error: Floats  # [super-blocks]
    d: Floats
    dmin: Floats
    scales: Floats  # [super-blocks, blocks]
    mins: Floats
    q: Floats  # [super-blocks, blocks, width]


@dataclass(frozen=True)
class Sums:
    """What of a block stays the same for all candidates. [super-blocks, blocks], `centred` with the elements last."""

    w: Floats  # sum w
    inverse: Floats  # 1 / sum w
    mean: Floats  # weighted mean of x
    centred: Floats  # w * (x - mean)


def search(affine: Affine, rows: Rows, importance: Rows | None) -> Found:
    """[n, columns] float32, [columns] float32 or None -> n * columns / 256 super-blocks; ScaleOverflowError."""
    x = rows.reshape(-1, affine.blocks, ELEMENTS // affine.blocks)
    if importance is None:
        weights = _plain_weights(affine, x)
    else:
        relative = np.broadcast_to(relative_importance(importance, rows.shape[1]), rows.shape)
        weights = _importance_weights(affine, x, relative.reshape(x.shape))
    sums = block_sums(x, weights)
    scale, low = fit_blocks(affine, x, weights, sums)
    d, dmin = scale.max(axis=1) / affine.scale_top, (-low).max(axis=1) / affine.scale_top
    refuse_scales(np.maximum(d, dmin), rows.shape[1], ELEMENTS)
    first = _round_scales(affine, affine.neighbours, x, weights, sums, scale, low, half_scale(d), half_scale(dmin))
    second = _round_scales(affine, affine.again, x, weights, sums, scale, low, *_fit_super(weights, sums, first))
    best = _less(second, first)
    return replace(best, d=stretched(affine, best.d), dmin=stretched(affine, best.dmin))


def stretched(affine: Affine, scale: Floats) -> Floats:
    """Step 4: fp16 numbers, each as it was where the stretched one is too large for fp16."""
    return half_scale_or(scale * affine.stretch, scale)


def _plain_weights(affine: Affine, x: Floats) -> Floats:
    rms = np.sqrt(total(x * x) / np.float32(x.shape[-1]))
    weights: Floats = (affine.even * rms)[..., None] + np.abs(x)
    return weights


def _importance_weights(affine: Affine, x: Floats, importance: Floats) -> Floats:
    squares = x * x
    mean = (total(total(squares)) / affine.over)[:, None, None]
    weights: Floats = importance * np.sqrt(mean + squares) + affine.blend * np.sqrt(mean)
    return weights


def block_sums(x: Floats, weights: Floats) -> Sums:
    """The sums over each block of the last axis."""
    w = total(weights)
    inverse = reciprocal(w)
    mean = total(weights * x) * inverse
    return Sums(w, inverse, mean, weights * (x - mean[..., None]))


def fit_blocks(affine: Affine, x: Floats, weights: Floats, sums: Sums) -> tuple[Floats, Floats]:
    """Step 1. The weighted least squares of x = low + scale * q, on x centred so that fp32 does not cancel."""
    bottom = np.minimum(x.min(axis=-1), affine.highest)
    span = x.max(axis=-1) - bottom
    inverse_span = reciprocal(span)
    # Gains count from all codes 0 at the weighted mean; where low cannot be so high, what is above is still to gain.
    above_highest = np.maximum(sums.mean - affine.highest, ZERO)
    best, scale = -(above_highest * above_highest * sums.w), np.zeros_like(span)
    low = np.minimum(sums.mean, affine.highest)
    for g in affine.grid:
        inverse = g * inverse_span
        step = span * (ONE / g)
        for edge in affine.edges:
            start = bottom + edge * step
            q = codes((x - start[..., None]) * inverse[..., None], 0, affine.top)
            wq = weights * q
            sum_q, sum_qq, cross = total(wq), total(wq * q), total(sums.centred * q)
            mean_q = sum_q * sums.inverse
            fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
            fitted_low = sums.mean - fitted * mean_q
            gain = cross * fitted
            # Where a low end above 0 cannot be stored, fit through 0 instead, its gain against the same weighted mean.
            through = cross + sums.mean * sum_q
            fitted_through = through * reciprocal(sum_qq)
            above = fitted_low > affine.highest
            gain = np.where(above, through * fitted_through - sums.mean * sums.mean * sums.w, gain)
            better = gain > best
            best = np.where(better, gain, best)
            scale = np.where(better, np.where(above, fitted_through, fitted), scale)
            low = np.where(better, np.where(above, ZERO, fitted_low), low)
    return scale, low


def _round_scales(
    affine: Affine,
    neighbours: Floats,
    x: Floats,
    weights: Floats,
    sums: Sums,
    scale: Floats,
    low: Floats,
    d: Floats,
    dmin: Floats,
) -> Found:
    """Step 2: the integer scales and mins under `d` and `dmin`, by the exact error of each neighbour."""
    inverse_dmin = reciprocal(dmin)[:, None]
    nearest = codes(scale * reciprocal(d)[:, None], 0, affine.scale_top)
    best = np.full_like(scale, np.inf)
    scales, mins, q = np.zeros_like(scale), np.zeros_like(scale), np.zeros_like(x)
    for k in neighbours:
        tried = np.minimum(np.maximum(nearest + k, ZERO), affine.scale_top)
        step = d[:, None] * tried
        inverse = reciprocal(step)[..., None]
        draft = codes((x - low[..., None]) * inverse, 0, affine.top)
        mean_q = total(weights * draft) * sums.inverse
        tried_min = codes((step * mean_q - sums.mean) * inverse_dmin, 0, affine.scale_top)
        under = (dmin[:, None] * tried_min)[..., None]
        tried_q = codes((x + under) * inverse, 0, affine.top)
        off = (step[..., None] * tried_q - under) - x
        error = total(weights * off * off)
        better = error < best
        best = np.where(better, error, best)
        scales, mins = np.where(better, tried, scales), np.where(better, tried_min, mins)
        q = np.where(better[..., None], tried_q, q)
    return Found(total(best), d, dmin, scales, mins, q)


def _fit_super(weights: Floats, sums: Sums, found: Found) -> tuple[Floats, Floats]:
    """Step 3: fp16 d and dmin that fit best to given codes, scales and mins; as they were where nothing is to fit."""
    wq = weights * found.q
    sum_q, sum_qq = total(wq), total(wq * found.q)
    cross = total(sums.centred * found.q) + sums.mean * sum_q  # sum w x q
    a, b = found.scales, found.mins
    aa, ab, bb = total(a * a * sum_qq), total(a * b * sum_q), total(b * b * sums.w)
    ax, bx = total(a * cross), total(b * (sums.mean * sums.w))
    determinant = aa * bb - ab * ab
    both = determinant > np.float32(1e-5) * (aa * bb)
    inverse = ONE / np.where(both, determinant, ONE)
    d = np.where(both, (ax * bb - bx * ab) * inverse, ax * reciprocal(aa))
    dmin = np.where(both, (ax * ab - bx * aa) * inverse, found.dmin)
    sound = (d > TINY) & (dmin >= ZERO)
    return half_scale_or(np.where(sound, d, found.d), found.d), half_scale_or(
        np.where(sound, dmin, found.dmin), found.dmin
    )


def _less(a: Found, b: Found) -> Found:
    """The solution of less error, `b` where they are equal."""
    one = a.error < b.error
    blocks, all_codes = one[:, None], one[:, None, None]
    return Found(
        np.where(one, a.error, b.error),
        np.where(one, a.d, b.d),
        np.where(one, a.dmin, b.dmin),
        np.where(blocks, a.scales, b.scales),
        np.where(blocks, a.mins, b.mins),
        np.where(all_codes, a.q, b.q),
    )
