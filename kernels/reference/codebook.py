"""The search that IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S share: a group of weights becomes signs and a point of a codebook.

    super-block, 256 weights: d      block, 16 or 32: step = d * unit * (2 * scale + 1), scale 0..15      group, 4 or 8: a point
    weight = step * sign * grid[point]

    w = importance * sqrt(variance * mean + x^2) + blend * sqrt(mean)     mean of x^2 over the super-block
    w = x^2 + plain * mean                                               without importance

    0. signs are the weights'; where only an even number can be stored, the weight of least w * x^2 in each 8 takes the wrong
       one. What is left to match is a = |x|, negative for those.
    1. each block alone: for each target t, step = max(a) / t -> points -> fitted step and gain; the largest gain wins
    2. d = fp16(the largest step / (31 * unit)); per block the rounded scale and its neighbours are tried exactly
    3. d is fitted to all points of the super-block, step 2 once more under it; kept where the error is less

The point for a group: every number rounds to a level of its own, which makes a cell; of the 8 points nearest to the
cell's middle (`neighbours`) the one of least weighted error wins. A point that is its own cell is the best there is.

    error + sum(w a a) = step * (step * squares - 2 * cross),   cross = sum(w a g),   squares = sum(w g g)

All sums are in index order. The weights are ggml's, made a little more even; the search is smelt's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_scales, refuse_values, relative_importance
from .grids import LEVELS, points
from .search import ONE, ZERO, Floats, codes, half_scale, half_scale_or, reciprocal, total

WIDTH, NEAREST, TWO, HALF = 256, 8, np.float32(2), np.float32(0.5)
TOP_SCALE, TOP_FACTOR = 15, np.float32(31)
TRIED = tuple(np.float32(k) for k in (-1, 0, 1))


@dataclass(frozen=True)
class Codebook:
    """One type's shape and the search's constants.

    level of a number in units of the step = round(number * slope - offset); targets: where a block's largest weight lands
    """

    name: str
    block: int
    unit: np.float32
    even: bool
    slope: np.float32
    offset: np.float32
    targets: tuple[np.float32, ...]
    variance: np.float32
    blend: np.float32
    plain: np.float32


@dataclass(frozen=True)
class Coded:
    """What a super-block stores, before packing."""

    d: Floats  # [super-blocks], fp16 numbers
    scales: Packed  # [super-blocks, 256 / block], 0..15
    points: NDArray[np.uint16]  # [super-blocks, 256 / group]
    signs: Packed  # [super-blocks, 32]: bit i of byte j is set where weight 8 j + i is negative


def targets(name: str, low: float, high: float, count: int) -> tuple[np.float32, ...]:
    """`count` targets in equal ratios from `low` to `high` times the top level, and the least level, for constant blocks.

    Twice as many lower the weighted error by 0.5 % and take a third longer.
    """
    least, *_, top = LEVELS[name]
    ratios = (low * (high / low) ** (i / (count - 1)) for i in range(count))
    return (*(np.float32(round(top * ratio, 2)) for ratio in ratios), np.float32(least))


@cache
def neighbours(name: str) -> tuple[NDArray[np.uint16], Floats]:
    """The 8 points nearest to each cell, nearest first: indexes [cells, 8], values float32[cells, group, 8].

    A cell is sum(level[i] * levels^i).
    """
    levels = np.array(LEVELS[name], np.int64)
    values = levels[points(name)]
    n_points, group = values.shape
    cell = np.arange(len(levels) ** group)[:, None] // len(levels) ** np.arange(group) % len(levels)
    middles = levels[cell]
    distance = (middles**2).sum(axis=1)[:, None] + (values**2).sum(axis=1) - 2 * middles @ values.T
    ranked = distance * n_points + np.arange(n_points)  # ties go to the lower index
    nearest = np.sort(np.partition(ranked, NEAREST - 1, axis=1)[:, :NEAREST], axis=1) % n_points
    return nearest.astype(np.uint16), np.ascontiguousarray(values[nearest].transpose(0, 2, 1)).astype(np.float32)


def search(book: Codebook, rows: Rows, importance: Rows | None) -> Coded:
    """[n, columns] float32 -> the codes of n * columns / 256 super-blocks.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    columns = rows.shape[1]
    refuse_values(rows, SEARCH_LIMIT)
    x = rows.reshape(-1, WIDTH)
    weights = _weights(book, rows, x, importance)
    a, signs = _signs(book, x, weights)
    blocks = (len(x), WIDTH // book.block, book.block)
    a, weights = a.reshape(blocks), weights.reshape(blocks)
    step = _fit_blocks(book, a, weights)
    d = step.max(axis=1) / (TOP_FACTOR * book.unit)
    refuse_scales(d, columns, WIDTH)
    nearest = HALF * (step * reciprocal(half_scale(d) * book.unit)[:, None] - ONE)
    found = _round_scales(book, a, weights, np.rint(nearest), half_scale(d))
    again = _round_scales(book, a, weights, found.scales, found.fitted)
    better = again.error < found.error
    indexes = np.where(better[:, None], again.points, found.points)
    scales = np.where(better[:, None], again.scales, found.scales).astype(np.uint8)
    return Coded(np.where(better, again.d, found.d), scales, indexes, signs)


def _weights(book: Codebook, rows: Rows, x: Floats, importance: Rows | None) -> Floats:
    """[super-blocks, 256]."""
    squares = x * x
    mean = (total(squares) / np.float32(WIDTH))[:, None]
    if importance is None:
        plain: Floats = squares + book.plain * mean
        return plain
    relative = np.broadcast_to(relative_importance(importance, rows.shape[1]), rows.shape).reshape(x.shape)
    weights: Floats = relative * np.sqrt(book.variance * mean + squares) + book.blend * np.sqrt(mean)
    return weights


def _signs(book: Codebook, x: Floats, weights: Floats) -> tuple[Floats, Packed]:
    """Step 0: a [super-blocks, 256] and sign bytes [super-blocks, 32]."""
    a = np.abs(x).reshape(-1, 8)
    negative = (x < ZERO).reshape(-1, 8)
    if book.even:
        odd = np.flatnonzero(negative.sum(axis=1) & 1)
        least = (weights.reshape(-1, 8) * a * a).argmin(axis=1)[odd]
        a[odd, least] = -a[odd, least]
        negative[odd, least] ^= True
    return a.reshape(x.shape), np.packbits(negative, axis=1, bitorder="little").reshape(-1, WIDTH // 8)


def _match(book: Codebook, a: Floats, weights: Floats, step: Floats, inverse: Floats) -> tuple[Floats, Floats, Floats]:
    """Points under steps [..., blocks]: cross and squares [..., blocks], indexes uint16 [..., blocks, groups]."""
    indexes, values = neighbours(book.name)
    levels, group = len(LEVELS[book.name]), values.shape[1]
    shape = (*step.shape, book.block // group, group)
    scaled = a * (inverse * book.slope)[..., None] - book.offset
    cell = (codes(scaled, 0, levels - 1).astype(np.intp).reshape(shape) * levels ** np.arange(group)).sum(axis=-1)
    grids = values[cell]  # [..., blocks, groups, group, 8]
    wa, w = (weights * a).reshape(shape), weights.reshape(shape)
    cross = total((wa[..., None] * grids).swapaxes(-1, -2))
    squares = total((w[..., None] * (grids * grids)).swapaxes(-1, -2))
    error = (step * step)[..., None, None] * squares - (step + step)[..., None, None] * cross
    best = error.argmin(axis=-1)[..., None]
    taken = [total(np.take_along_axis(sums, best, axis=-1)[..., 0]) for sums in (cross, squares)]
    return taken[0], taken[1], indexes[cell, best[..., 0]]


def _fit_blocks(book: Codebook, a: Floats, weights: Floats) -> Floats:
    """Step 1: [super-blocks, blocks] steps."""
    largest = np.maximum(a.max(axis=2), ZERO)
    inverse = reciprocal(largest)
    best = np.zeros_like(largest)
    step: Floats = np.zeros_like(largest)
    for target in book.targets:
        cross, squares, _ = _match(book, a, weights, largest / target, target * inverse)
        fitted = cross * reciprocal(squares)
        gain = cross * fitted
        better = gain > best
        best, step = np.where(better, gain, best), np.where(better, fitted, step)
    return step


@dataclass(frozen=True)
class _Found:
    """One solution, and the d that would suit its points better."""

    error: Floats
    d: Floats
    scales: Floats
    points: NDArray[np.uint16]
    fitted: Floats


def _round_scales(book: Codebook, a: Floats, weights: Floats, nearest: Floats, d: Floats) -> _Found:
    """Step 2: the scale of each block under `d`, by the exact error of `nearest` and its neighbours."""
    n, blocks = nearest.shape
    best, scales = np.full_like(nearest, np.inf), np.zeros_like(nearest)
    cross, squares = np.zeros_like(nearest), np.zeros_like(nearest)
    groups = book.block // points(book.name).shape[1]
    indexes = np.zeros((n, blocks, groups), np.uint16)
    unit = d * book.unit
    for k in TRIED:
        scale = np.minimum(np.maximum(nearest + k, ZERO), np.float32(TOP_SCALE))
        step = unit[:, None] * (TWO * scale + ONE)
        c, s, tried = _match(book, a, weights, step, reciprocal(step))
        error = step * (step * s - (c + c))
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        cross, squares = np.where(better, c, cross), np.where(better, s, squares)
        indexes = np.where(better[..., None], tried, indexes)
    factor = (TWO * scales + ONE) * book.unit
    fitted = total(factor * cross) * reciprocal(total(factor * factor * squares))
    fitted = half_scale_or(np.where(fitted > ZERO, fitted, d), d)
    return _Found(total(best), d, scales, indexes.reshape(n, blocks * groups), fitted)
