"""The search that all IQ1, IQ2 and IQ3 types share: a group of weights becomes signs and a point of a codebook.

    super-block, 256 weights: d      block, 16 or 32: step = d * unit * (2 * scale + 1)      group, 4 or 8: a point
    weight = step * sign * grid[point]            IQ1: step * (grid[point] + shift), the shift one of two for each span

    w = importance * sqrt(variance * mean + x^2) + blend * sqrt(max(mean, fourth / 3))
    w = x^2 + plain * mean                                               without importance
    mean of x^2 over the super-block; fourth = mean(x^4) / mean, 3 * mean where weights are normal, more with outliers

    0. signs are the weights'; where only an even number can be stored, the weight of least w * x^2 in each 8 takes the wrong
       one. What is left to match is a = |x|, negative for those. IQ1's points have signs of their own: a = x.
    1. each block alone: for each target t, step = max|a| / t -> points -> fitted step and gain; the largest gain wins
    2. d = fp16(the largest step / (largest factor * unit)); per block the scales below and above its step are tried exactly
    3. d is fitted to all points of the super-block, and the points are matched once more under it, among more candidates
    4. d is fitted to those, then raised: least squares makes every weight a little too small, and that adds up from layer
       to layer where noise does not (docs/quality.md). With fitted = cross / squares and whole = sum(w a a) / cross, under
       which no part of the weights is missing,

           d = fitted + min(restored * (whole - fitted), most * fitted)

       so that a super-block whose points fit well is left as it is. Both constants are as large as leaves the error at or
       below ggml's

The point for a group: every number rounds to a level of its own, which makes a cell; of the points nearest to the cell's
middle (`neighbours`) the one of least weighted error wins: of `scanned` in step 1, of `nearest` in step 2, of `wide` in
step 3. Each shift has cells and points of its own; a span takes the shift of less error.

    error + sum(w a a) = step * (step * squares - 2 * cross),   cross = sum(w a g),   squares = sum(w g g)

All sums are in index order. The weights are ggml's, made more even, most where there are outliers: else a weight of little
importance beside one goes so wrong that the plain error is 1.4 times ggml's. The search is smelt's own.
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

WIDTH, TWO, HALF = 256, np.float32(2), np.float32(0.5)
NORMAL = np.float32(3 * WIDTH)
TRIED = (ZERO, ONE)


@dataclass(frozen=True)
class Codebook:
    """One type's shape and the search's constants.

    level of a number in units of the step = round(number * slope - offset); targets: where a block's largest weight lands;
    scanned, nearest, wide: candidates for a group; top_scale: the largest integer scale; shifts: added to points, the one
    that matches best for every `span` weights; restored: how much of what the fit takes from the weights d gives back;
    most: what it may add to d
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
    restored: np.float32
    most: np.float32
    scanned: int = 8
    nearest: int = 8
    wide: int = 16
    top_scale: int = 15
    shifts: tuple[np.float32, ...] = (ZERO,)
    span: int = 8


@dataclass(frozen=True)
class Coded:
    """What a super-block stores, before packing."""

    d: Floats  # [super-blocks], fp16 numbers
    scales: Packed  # [super-blocks, 256 / block], 0..top_scale
    points: NDArray[np.uint16]  # [super-blocks, 256 / group], + the number of points for the second shift
    signs: Packed  # [super-blocks, 32]: bit i of byte j is set where weight 8 j + i is negative; IQ1: [super-blocks, 0]


def targets(name: str, low: float, high: float, count: int) -> tuple[np.float32, ...]:
    """`count` targets in equal ratios from `low` to `high` times the top level, and the least level, for constant blocks.

    Twice as many lower the weighted error by 0.5 % and take a third longer.
    """
    least, *_, top = LEVELS[name]
    ratios = (low * (high / low) ** (i / (count - 1)) for i in range(count))
    return (*(np.float32(round(top * ratio, 2)) for ratio in ratios), np.float32(least))


@cache
def neighbours(name: str, count: int) -> tuple[NDArray[np.uint16], Floats]:
    """The `count` points nearest to each cell, nearest first: indexes [cells, count], values float32[cells, group, count].

    A cell is sum(level[i] * levels^i).
    """
    levels = np.array(LEVELS[name], np.int64)
    values = levels[points(name)]
    n_points, group = values.shape
    cell = np.arange(len(levels) ** group)[:, None] // len(levels) ** np.arange(group) % len(levels)
    middles = levels[cell]
    distance = (middles**2).sum(axis=1)[:, None] + (values**2).sum(axis=1) - 2 * middles @ values.T
    ranked = distance * n_points + np.arange(n_points)  # ties go to the lower index
    nearest = np.sort(np.partition(ranked, count - 1, axis=1)[:, :count], axis=1) % n_points
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
    d = step.max(axis=1) / (np.float32(2 * book.top_scale + 1) * book.unit)
    refuse_scales(d, columns, WIDTH)
    d = half_scale(d)
    nearest = HALF * (step * reciprocal(d * book.unit)[:, None] - ONE)
    scales, fitted = _round_scales(book, a, weights, np.floor(nearest), d)
    d = half_scale_or(np.where(fitted > ZERO, fitted, d), d)
    step = (d * book.unit)[:, None] * (TWO * scales + ONE)
    cross, squares, indexes = _match(book, book.wide, a, weights, step, reciprocal(step))
    cross, squares = _sum_super(book, scales, cross, squares)
    d = raised(book, d, cross, squares, total(total(weights * a * a)))
    return Coded(
        d,
        scales.astype(np.uint8),
        indexes.astype(np.uint16).reshape(len(x), WIDTH // points(book.name).shape[1]),
        signs,
    )


def _sum_super(book: Codebook, scales: Floats, cross: Floats, squares: Floats) -> tuple[Floats, Floats]:
    """Of blocks -> of super-blocks, in units of d."""
    factor = (TWO * scales + ONE) * book.unit
    return total(factor * cross), total(factor * factor * squares)


def raised(book: Codebook, d: Floats, cross: Floats, squares: Floats, whole: Floats) -> Floats:
    """Step 4: fp16 numbers [super-blocks], `d` where nothing can be fitted; `whole` is sum(w a a)."""
    fitted = cross * reciprocal(squares)
    missing = np.maximum(whole * reciprocal(cross) - fitted, ZERO)
    more = fitted + np.minimum(book.restored * missing, book.most * fitted)
    return half_scale_or(np.where(fitted > ZERO, more, d), d)


def _weights(book: Codebook, rows: Rows, x: Floats, importance: Rows | None) -> Floats:
    """[super-blocks, 256]."""
    squares = x * x
    mean = (total(squares) / np.float32(WIDTH))[:, None]
    if importance is None:
        plain: Floats = squares + book.plain * mean
        return plain
    relative = np.broadcast_to(relative_importance(importance, rows.shape[1]), rows.shape).reshape(x.shape)
    fourth = total(squares * (squares * reciprocal(mean)))[:, None] / NORMAL
    even = book.blend * np.sqrt(np.maximum(mean, fourth))
    weights: Floats = relative * np.sqrt(book.variance * mean + squares) + even
    return weights


def _signs(book: Codebook, x: Floats, weights: Floats) -> tuple[Floats, Packed]:
    """Step 0: a [super-blocks, 256] and sign bytes [super-blocks, 32]."""
    if LEVELS[book.name][0] < 0:
        return x, np.empty((len(x), 0), np.uint8)
    a = np.abs(x).reshape(-1, 8)
    negative = (x < ZERO).reshape(-1, 8)
    if book.even:
        odd = np.flatnonzero(negative.sum(axis=1) & 1)
        least = (weights.reshape(-1, 8) * a * a).argmin(axis=1)[odd]
        a[odd, least] = -a[odd, least]
        negative[odd, least] ^= True
    return a.reshape(x.shape), np.packbits(negative, axis=1, bitorder="little").reshape(-1, WIDTH // 8)


def _match(
    book: Codebook, count: int, a: Floats, weights: Floats, step: Floats, inverse: Floats
) -> tuple[Floats, Floats, Floats]:
    """Points under steps [..., blocks]: cross and squares [..., blocks], indexes uint16 [..., blocks, groups]."""
    matches = [_match_shifted(book, count, shift, a, weights, step, inverse) for shift in book.shifts]
    spans = book.span // points(book.name).shape[1]
    blocks, groups = matches[0][0].shape[:-1], matches[0][0].shape[-1]
    shape = (*blocks, groups // spans, spans)
    error, cross, squares, indexes = (sums.reshape(shape) for sums in matches[0])
    least = total(error)
    for k, match in enumerate(matches[1:], 1):
        e, c, s, i = (sums.reshape(shape) for sums in match)
        better = (total(e) < least)[..., None]
        least = np.where(better[..., 0], total(e), least)
        cross, squares = np.where(better, c, cross), np.where(better, s, squares)
        indexes = np.where(better, i + np.uint16(k * len(points(book.name))), indexes)
    shape = matches[0][0].shape
    return total(cross.reshape(shape)), total(squares.reshape(shape)), indexes.reshape(shape)


def _match_shifted(
    book: Codebook, count: int, shift: np.float32, a: Floats, weights: Floats, step: Floats, inverse: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Error, cross, squares and index of the best point of each group, [..., blocks, groups]."""
    indexes, values = neighbours(book.name, book.wide)
    levels, group = len(LEVELS[book.name]), values.shape[1]
    shape = (*step.shape, book.block // group, group)
    scaled = a * (inverse * book.slope)[..., None] - (book.offset + shift)
    cell = (codes(scaled, 0, levels - 1).astype(np.intp).reshape(shape) * levels ** np.arange(group)).sum(axis=-1)
    grids = values[cell, :, :count] + shift  # [..., blocks, groups, group, nearest]
    wa, w = (weights * a).reshape(shape), weights.reshape(shape)
    cross = total((wa[..., None] * grids).swapaxes(-1, -2))
    squares = total((w[..., None] * (grids * grids)).swapaxes(-1, -2))
    error = (step * step)[..., None, None] * squares - (step + step)[..., None, None] * cross
    best = error.argmin(axis=-1)[..., None]
    taken = [np.take_along_axis(sums, best, axis=-1)[..., 0] for sums in (error, cross, squares)]
    return taken[0], taken[1], taken[2], indexes[cell, best[..., 0]]


def _fit_blocks(book: Codebook, a: Floats, weights: Floats) -> Floats:
    """Step 1: [super-blocks, blocks] steps."""
    largest = np.abs(a).max(axis=2)
    inverse = reciprocal(largest)
    best = np.zeros_like(largest)
    step: Floats = np.zeros_like(largest)
    for target in book.targets:
        cross, squares, _ = _match(book, book.scanned, a, weights, largest / target, target * inverse)
        fitted = cross * reciprocal(squares)
        gain = cross * fitted
        better = gain > best
        best, step = np.where(better, gain, best), np.where(better, fitted, step)
    return step


def _round_scales(book: Codebook, a: Floats, weights: Floats, nearest: Floats, d: Floats) -> tuple[Floats, Floats]:
    """Step 2: the scale of each block under `d`, by the exact error; and the d that would suit their points better."""
    best, scales = np.full_like(nearest, np.inf), np.zeros_like(nearest)
    cross, squares = np.zeros_like(nearest), np.zeros_like(nearest)
    unit = d * book.unit
    for k in TRIED:
        scale = np.minimum(np.maximum(nearest + k, ZERO), np.float32(book.top_scale))
        step = unit[:, None] * (TWO * scale + ONE)
        c, s, _ = _match(book, book.nearest, a, weights, step, reciprocal(step))
        error = step * (step * s - (c + c))
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, scale, scales)
        cross, squares = np.where(better, c, cross), np.where(better, s, squares)
    cross, squares = _sum_super(book, scales, cross, squares)
    return scales, cross * reciprocal(squares)
