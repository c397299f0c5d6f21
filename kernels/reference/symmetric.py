"""The search that Q3_K, Q6_K, IQ4_XS and IQ4_NL share: blocks with a signed integer scale under one fp16 number.

    weight[j, i] = (d * scale[j]) * level[j, i]      level: an integer low..high, or one of a table's; scale_low..scale_high

It minimises sum(w * (decoded - x)^2):

    1. each block alone: for each grid point g, levels nearest to x * g / extreme -> fitted scale and gain (search.py)
    2. for each top, d = fp16(the block scale of largest magnitude / top); per block the rounded scale and its neighbours
       are tried exactly
    3. d is fitted to all levels of the super-block, step 2 once more under it; of all these the least error is kept

The weights are ggml's, made a little more even; m is the super-block's mean of x^2, and importance has mean 1:

    w = x^2 + even * m                                          without importance
    w = importance * sqrt(2 m + x^2) + blend * sqrt(2 m)        with importance, where `rooted`
    w = importance + blend                                      with importance, elsewhere

Where a table says the levels, those between two of its entries become the nearer one, halfway the upper:
nearest[int(2 * (x - low))], for the table's entries are integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..scheme import Rows
from .checks import refuse_scales, relative_importance
from .search import ZERO, Floats, codes, half_scale, half_scale_or, reciprocal, signed_extreme, total

NEIGHBOURS = tuple(np.float32(k) for k in (-1, 0, 1))
TWO = np.float32(2)


class Symmetric(NamedTuple):
    """What a format allows, and its tuned constants; the compiled search takes the same value."""

    blocks: int  # in a super-block
    low: np.float32
    high: np.float32
    nearest: Floats  # the level nearest to low + i / 2; empty where every integer is a level
    scale_low: np.float32
    scale_high: np.float32
    tops: Floats  # what the integer scale of largest magnitude may be
    grid: Floats  # where the extreme weight lands: near `low` with one sign of the scale, near `high` with the other
    neighbours: Floats  # of the rounded scale
    even: np.float32
    blend: np.float32
    rooted: bool


@dataclass(frozen=True)
class Found:
    """One solution: float32 throughout, `d` on an fp16 number."""

    error: Floats  # [super-blocks]
    d: Floats
    scales: Floats  # [super-blocks, blocks]
    levels: Floats  # [super-blocks, blocks, width]


def nearest_table(levels: tuple[int, ...]) -> Floats:
    """`Symmetric.nearest` of ascending integer levels."""
    values = np.array(levels, np.float64)
    at = levels[0] + np.arange(2 * (levels[-1] - levels[0]) + 1) / 2
    middles = (values[1:] + values[:-1]) / 2
    return values[np.searchsorted(middles, at, side="right")].astype(np.float32)


def search(symmetric: Symmetric, rows: Rows, importance: Rows | None, elements: int) -> Found:
    """[n, columns] float32 -> its super-blocks of `elements`; ScaleOverflowError, InputError for a bad importance."""
    columns = rows.shape[1]
    x = rows.reshape(-1, symmetric.blocks, elements // symmetric.blocks)
    weights = _weights(symmetric, x, rows, importance, elements)
    scale = _fit_blocks(symmetric, x, weights)
    largest = signed_extreme(scale)
    refuse_scales(largest / symmetric.tops[0], columns, elements)
    first = half_scale(largest / symmetric.tops[0])
    kept = _nothing(x)
    for top in symmetric.tops:
        d = half_scale_or(largest / top, first)
        nearest = codes(scale * reciprocal(d)[:, None], symmetric.scale_low, symmetric.scale_high)
        found = _round_scales(symmetric, x, weights, nearest, d)
        again = _round_scales(symmetric, x, weights, found.scales, _fit_super(x, weights, found))
        kept = _less(again, _less(found, kept))
    return kept


def _weights(symmetric: Symmetric, x: Floats, rows: Rows, importance: Rows | None, elements: int) -> Floats:
    weights: Floats
    if importance is None:
        squares = x * x
        mean = total(total(squares)) / np.float32(elements)
        weights = squares + (symmetric.even * mean)[:, None, None]
        return weights
    relative = np.broadcast_to(relative_importance(importance, rows.shape[1]), rows.shape).reshape(x.shape)
    if not symmetric.rooted:
        weights = relative + symmetric.blend
        return weights
    squares = x * x
    twice_mean = (total(total(squares)) / np.float32(elements // 2))[:, None, None]
    weights = relative * np.sqrt(twice_mean + squares) + symmetric.blend * np.sqrt(twice_mean)
    return weights


def _levels(symmetric: Symmetric, values: Floats) -> Floats:
    if len(symmetric.nearest) == 0:
        return codes(values, symmetric.low, symmetric.high)
    clamped = np.minimum(np.maximum(values, symmetric.low), symmetric.high)
    levels: Floats = symmetric.nearest[((clamped - symmetric.low) * TWO).astype(np.int32)]
    return levels


def _fit_blocks(symmetric: Symmetric, x: Floats, weights: Floats) -> Floats:
    """Step 1: [super-blocks, blocks] scales, each with its sign."""
    inverse = reciprocal(signed_extreme(x))
    best, scale = np.zeros_like(inverse), np.zeros_like(inverse)
    for g in symmetric.grid:
        q = _levels(symmetric, x * (g * inverse)[..., None])
        wq = weights * q
        cross = total(wq * x)
        fitted = cross * reciprocal(total(wq * q))
        gain = cross * fitted
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fitted, scale)
    return scale


def _round_scales(symmetric: Symmetric, x: Floats, weights: Floats, nearest: Floats, d: Floats) -> Found:
    """Step 2: the integer scale of each block under `d`, by the exact error of `nearest` and its neighbours."""
    best = np.full_like(nearest, np.inf)
    scales, q = np.zeros_like(nearest), np.zeros_like(x)
    for k in symmetric.neighbours:
        tried = np.minimum(np.maximum(nearest + k, symmetric.scale_low), symmetric.scale_high)
        step = d[:, None] * tried
        tried_q = _levels(symmetric, x * reciprocal(step)[..., None])
        off = step[..., None] * tried_q - x
        error = total(weights * off * off)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
        q = np.where(better[..., None], tried_q, q)
    return Found(total(best), d, scales, q)


def _fit_super(x: Floats, weights: Floats, found: Found) -> Floats:
    """Step 3: the fp16 d that fits best to given levels and scales; as it was where nothing is to fit."""
    wq = weights * found.levels
    cross = total(found.scales * total(wq * x))
    squares = total(found.scales * found.scales * total(wq * found.levels))
    d = cross * reciprocal(squares)
    return half_scale_or(np.where(d != ZERO, d, found.d), found.d)


def _nothing(x: Floats) -> Found:
    """What any solution is better than."""
    n = len(x)
    return Found(np.full(n, np.inf, np.float32), np.zeros(n, np.float32), np.zeros(x.shape[:2], np.float32), x)


def _less(a: Found, b: Found) -> Found:
    """The solution of less error, `b` where they are equal."""
    one = a.error < b.error
    return Found(
        np.where(one, a.error, b.error),
        np.where(one, a.d, b.d),
        np.where(one[:, None], a.scales, b.scales),
        np.where(one[:, None, None], a.levels, b.levels),
    )
