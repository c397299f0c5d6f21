"""The search that Q3_K, Q6_K, IQ4_XS and IQ4_NL share: blocks with a signed integer scale under one fp16 number.

    weight[j, i] = (d * scale[j]) * level[j, i]      level: an integer low..high, or one of a table's; scale_low..scale_high

It minimises sum(w * (decoded - x)^2):

    1. each block alone: for each grid point g, levels nearest to x * g / extreme -> fitted scale, its gain (search.py) and
       its mass sum(w level^2); the largest gain wins
    2. for each top, integer scales k nearest to scale * top / largest -> the d that fits best, under
       sum(mass * (d * k - scale)^2), which is what they add to the error while the levels stay; fp16 of the best
    3. per block the integer scale nearest under d and its neighbours are tried exactly

The weights are ggml's, made a little more even; m is the super-block's mean of x^2, and importance has mean 1:

    w = x^2 + even * m                                          without importance
    w = importance * sqrt(2 m + x^2) + blend * sqrt(2 m)        with importance, where `rooted`; an outlier, whose
                                                                x^2 is FAR times 2 m or more, gets `faint` of the second term
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
FAR = np.float32(12)


class Symmetric(NamedTuple):
    """What a format allows, and its tuned constants; the compiled search takes the same value."""

    blocks: int  # in a super-block
    low: np.float32
    high: np.float32
    nearest: Floats  # the level nearest to low + i / 2; empty where every integer is a level
    scale_low: np.float32
    scale_high: np.float32
    tops: Floats  # what the integer scale of largest magnitude may be, about
    grid: Floats  # where the extreme weight lands: near `low` with one sign of the scale, near `high` with the other
    neighbours: Floats  # of the rounded scale
    even: np.float32
    blend: np.float32
    faint: np.float32
    rooted: bool


@dataclass(frozen=True)
class Found:
    """float32 throughout, `d` on an fp16 number."""

    d: Floats  # [super-blocks]
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
    scale, mass = _fit_blocks(symmetric, x, weights)
    largest = signed_extreme(scale)
    refuse_scales(largest / symmetric.tops[0], columns, elements)
    return _round_scales(symmetric, x, weights, scale, _fit_super(symmetric, scale, mass, largest))


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
    even = symmetric.blend * np.sqrt(twice_mean)
    even = np.where(squares < FAR * twice_mean, even, symmetric.faint * even)
    weights = relative * np.sqrt(twice_mean + squares) + even
    return weights


def _levels(symmetric: Symmetric, values: Floats) -> Floats:
    if len(symmetric.nearest) == 0:
        return codes(values, symmetric.low, symmetric.high)
    clamped = np.minimum(np.maximum(values, symmetric.low), symmetric.high)
    levels: Floats = symmetric.nearest[((clamped - symmetric.low) * TWO).astype(np.int32)]
    return levels


def _fit_blocks(symmetric: Symmetric, x: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Step 1: [super-blocks, blocks] scales, each with its sign, and their masses."""
    inverse = reciprocal(signed_extreme(x))
    best, scale, mass = np.zeros_like(inverse), np.zeros_like(inverse), np.zeros_like(inverse)
    for g in symmetric.grid:
        q = _levels(symmetric, x * (g * inverse)[..., None])
        wq = weights * q
        cross, squares = total(wq * x), total(wq * q)
        fitted = cross * reciprocal(squares)
        gain = cross * fitted
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fitted, scale)
        mass = np.where(better, squares, mass)
    return scale, mass


def _fit_super(symmetric: Symmetric, scale: Floats, mass: Floats, largest: Floats) -> Floats:
    """Step 2: [super-blocks] the fp16 d; that of the first top where nothing is to fit."""
    best, d = np.zeros_like(largest), np.zeros_like(largest)
    inverse = reciprocal(largest)
    heavy = mass * scale
    for top in symmetric.tops:
        k = codes(scale * (top * inverse)[:, None], symmetric.scale_low, symmetric.scale_high)
        cross = total(heavy * k)
        fitted = cross * reciprocal(total(mass * k * k))
        gain = cross * fitted
        better = gain > best
        best, d = np.where(better, gain, best), np.where(better, fitted, d)
    first = half_scale(largest / symmetric.tops[0])
    return half_scale_or(np.where(d != ZERO, d, first), first)


def _round_scales(symmetric: Symmetric, x: Floats, weights: Floats, scale: Floats, d: Floats) -> Found:
    """Step 3: the integer scale of each block under `d`, by the exact error of the nearest and its neighbours."""
    nearest = codes(scale * reciprocal(d)[:, None], symmetric.scale_low, symmetric.scale_high)
    best = np.full_like(scale, np.inf)
    scales, q = np.zeros_like(scale), np.zeros_like(x)
    for k in symmetric.neighbours:
        tried = np.minimum(np.maximum(nearest + k, symmetric.scale_low), symmetric.scale_high)
        step = d[:, None] * tried
        tried_q = _levels(symmetric, x * reciprocal(step)[..., None])
        off = step[..., None] * tried_q - x
        error = total(weights * off * off)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
        q = np.where(better[..., None], tried_q, q)
    return Found(d, scales, q)
