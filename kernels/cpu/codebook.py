"""The codebook search, compiled: a super-block at a time, the 8 candidate points of a group side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..reference.codebook import HALF, NEAREST, TOP_FACTOR, TOP_SCALE, TRIED, TWO, WIDTH, Codebook, Coded, neighbours
from ..reference.grids import LEVELS
from ..scheme import Rows
from .half import HALF_LIMIT, round_scale
from .jit import jit
from .tile import MAGIC, ONE, SOUND, ZERO, Floats, reciprocal

__all__ = ["search"]

LARGEST_SCALE, FULL = np.float32(TOP_SCALE), np.float32(WIDTH)
INFINITE = np.float32(np.inf)

Bytes = NDArray[np.uint8]
Indexes = NDArray[np.int64]


def search(book: Codebook, rows: Rows, importance: Rows | None) -> Coded:
    """The reference's codes and errors."""
    columns = rows.shape[1]
    refuse_values(rows, SEARCH_LIMIT)
    x = np.ascontiguousarray(rows).reshape(-1, WIDTH)
    relative = np.empty((0, WIDTH), np.float32)
    if importance is not None:
        relative = relative_importance(importance, columns).reshape(-1, WIDTH)
    indexes, values = neighbours(book.name)
    group, levels = values.shape[1], len(LEVELS[book.name])
    powers = np.array([levels ** (i % group) for i in range(book.block)], np.int32)
    level = np.array([book.slope, book.offset, levels - 1], np.float32)
    targets = np.array(book.targets, np.float32)
    even = np.array([book.variance, book.blend, book.plain], np.float32)
    d, scales = np.empty(len(x), np.float32), np.empty((len(x), WIDTH // book.block), np.uint8)
    found, signs = np.empty((len(x), WIDTH // group), np.int64), np.empty((len(x), WIDTH // 8), np.uint8)
    flat = values.reshape(-1)
    answer = _search(
        x, relative, book.unit, book.even, even, level, powers, targets, flat, group, d, scales, found, signs
    )
    if answer != SOUND:
        refuse_scale(answer, columns, WIDTH)
    return Coded(d, scales, indexes.reshape(-1)[found], signs)


@jit
def _search(
    x: Floats,
    importance: Floats,
    unit: np.float32,
    even_signs: bool,
    even: Floats,
    level: Floats,
    powers: NDArray[np.int32],
    targets: Floats,
    values: Floats,
    group: int,
    d: Floats,
    scales: Bytes,
    found: Indexes,
    signs: Bytes,
) -> int:
    block, blocks = powers.shape[0], scales.shape[1]
    a, w, wa = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    step, errors = np.empty(blocks, np.float32), np.empty(2, np.float32)
    tried_d, tried, points = np.empty(2, np.float32), np.empty((2, blocks), np.float32), np.empty((2, WIDTH), np.int64)
    work = np.empty((3, NEAREST), np.float32)
    levels, chosen = np.empty(block, np.int32), np.empty(block // group, np.int64)
    for n in range(x.shape[0]):
        _weights(x[n], importance, n, even, w)
        _signs(x[n], w, even_signs, a, signs[n])
        for i in range(WIDTH):
            wa[i] = w[i] * a[i]
        largest = ZERO
        for b in range(blocks):
            step[b] = _fit_block(a, w, wa, b * block, level, powers, targets, values, group, work, levels, chosen)
            largest = max(largest, step[b])
        d[n] = largest / (TOP_FACTOR * unit)
        if d[n] >= HALF_LIMIT:
            return n
        tried_d[0] = round_scale(d[n])
        inverse = reciprocal(tried_d[0] * unit)
        for b in range(blocks):
            tried[0, b] = np.rint(HALF * (step[b] * inverse - ONE))
        for k in range(2):
            errors[k] = ZERO
            cross, squares = ZERO, ZERO
            for b in range(blocks):
                best, c, s = _round_scale(
                    a, w, wa, b, tried_d[k] * unit, tried[0, b], level, powers, values, group, work, levels, chosen,
                    tried[k], points[k],
                )  # fmt: skip
                factor = (TWO * tried[k, b] + ONE) * unit
                errors[k] += best
                cross += factor * c
                squares += factor * factor * s
            fitted = cross * reciprocal(squares)
            if k == 0:
                tried_d[1] = round_scale(fitted) if fitted > ZERO and fitted < HALF_LIMIT else tried_d[0]
        k = 1 if errors[1] < errors[0] else 0
        d[n] = tried_d[k]
        for b in range(blocks):
            scales[n, b] = np.uint8(tried[k, b])
        for j in range(found.shape[1]):
            found[n, j] = points[k, j]
    return SOUND


@jit
def _weights(x: Floats, importance: Floats, n: int, even: Floats, w: Floats) -> None:
    total = ZERO
    for i in range(WIDTH):
        total += x[i] * x[i]
    mean = total / FULL
    if importance.shape[0] == 0:
        for i in range(WIDTH):
            w[i] = x[i] * x[i] + even[2] * mean
        return
    relative = importance[n % importance.shape[0]]
    more = even[1] * np.sqrt(mean)
    for i in range(WIDTH):
        w[i] = relative[i] * np.sqrt(even[0] * mean + x[i] * x[i]) + more


@jit
def _signs(x: Floats, w: Floats, even_signs: bool, a: Floats, signs: Bytes) -> None:
    """Step 0."""
    for j in range(signs.shape[0]):
        bits, count, least, cheapest = np.uint8(0), 0, 0, INFINITE
        for i in range(8):
            value = x[8 * j + i]
            a[8 * j + i] = abs(value)
            if value < ZERO:
                bits |= np.uint8(1 << i)
                count += 1
            cost = w[8 * j + i] * abs(value) * abs(value)
            if cost < cheapest:
                cheapest, least = cost, i
        if even_signs and count & 1:
            bits ^= np.uint8(1 << least)
            a[8 * j + least] = -a[8 * j + least]
        signs[j] = bits


@jit
def _fit_block(
    a: Floats, w: Floats, wa: Floats, start: int, level: Floats, powers: NDArray[np.int32], targets: Floats,
    values: Floats, group: int, work: Floats, levels: NDArray[np.int32], chosen: Indexes,
) -> np.float32:  # fmt: skip
    """Step 1."""
    largest = ZERO
    for i in range(start, start + powers.shape[0]):
        largest = max(largest, a[i])
    inverse = reciprocal(largest)
    best = ZERO
    step: np.float32 = ZERO
    for k in range(targets.shape[0]):
        target = targets[k]
        cross, squares = _match(
            a, w, wa, start, largest / target, target * inverse, level, powers, values, group, work, levels, chosen
        )
        fitted = cross * reciprocal(squares)
        gain = cross * fitted
        step = fitted if gain > best else step
        best = gain if gain > best else best
    return step


@jit
def _round_scale(
    a: Floats, w: Floats, wa: Floats, b: int, unit: np.float32, nearest: np.float32, level: Floats,
    powers: NDArray[np.int32], values: Floats, group: int, work: Floats, levels: NDArray[np.int32], chosen: Indexes,
    scales: Floats, points: Indexes,
) -> tuple[np.float32, np.float32, np.float32]:  # fmt: skip
    """Step 2 for block `b`: its scale and points, their error, cross and squares."""
    best, cross, squares = INFINITE, ZERO, ZERO
    for k in range(len(TRIED)):
        scale = min(max(nearest + TRIED[k], ZERO), LARGEST_SCALE)
        step = unit * (TWO * scale + ONE)
        c, s = _match(
            a, w, wa, b * powers.shape[0], step, reciprocal(step), level, powers, values, group, work, levels, chosen
        )
        error = step * (step * s - (c + c))
        if error < best:
            best, cross, squares, scales[b] = error, c, s, scale
            for j in range(chosen.shape[0]):
                points[b * chosen.shape[0] + j] = chosen[j]
    return best, cross, squares


@jit
def _match(
    a: Floats, w: Floats, wa: Floats, start: int, step: np.float32, inverse: np.float32, level: Floats,
    powers: NDArray[np.int32], values: Floats, group: int, work: Floats, levels: NDArray[np.int32], chosen: Indexes,
) -> tuple[np.float32, np.float32]:  # fmt: skip
    """The block's points, as places in `neighbours`; their cross and squares."""
    factor, offset, top = inverse * level[0], level[1], level[2]
    for i in range(powers.shape[0]):
        clamped = min(max(a[start + i] * factor - offset, ZERO), top)
        levels[i] = np.int32(np.float32(clamped + MAGIC) - MAGIC) * powers[i]
    cross, squares = ZERO, ZERO
    square, double = step * step, step + step
    for j in range(0, powers.shape[0], group):
        cell = np.int64(0)
        for i in range(group):
            cell += levels[j + i]
        if group == 4:
            _sums_of_4(values, cell * 4 * NEAREST, w, wa, start + j, work[0], work[1])
        else:
            _sums_of_8(values, cell * 8 * NEAREST, w, wa, start + j, work[0], work[1])
        for k in range(work.shape[1]):
            work[2, k] = square * work[1, k] - double * work[0, k]
        best, least = 0, INFINITE
        for k in range(NEAREST):
            error = work[2, k]
            best = k if error < least else best
            least = error if error < least else least
        cross += work[0, best]
        squares += work[1, best]
        chosen[j // group] = cell * NEAREST + best
    return cross, squares


@jit
def _sums_of_4(values: Floats, at: int, w: Floats, wa: Floats, start: int, cross: Floats, squares: Floats) -> None:
    """cross[k] = sum(wa g), squares[k] = sum(w g g) of candidate k. Written out, or LLVM does not vectorise over k."""
    n = cross.shape[0]
    p0, p1, p2, p3 = wa[start], wa[start + 1], wa[start + 2], wa[start + 3]
    q0, q1, q2, q3 = w[start], w[start + 1], w[start + 2], w[start + 3]
    for k in range(n):
        g0, g1, g2, g3 = values[at + k], values[at + n + k], values[at + 2 * n + k], values[at + 3 * n + k]
        cross[k] = p0 * g0 + p1 * g1 + p2 * g2 + p3 * g3
        squares[k] = q0 * (g0 * g0) + q1 * (g1 * g1) + q2 * (g2 * g2) + q3 * (g3 * g3)


@jit
def _sums_of_8(values: Floats, at: int, w: Floats, wa: Floats, start: int, cross: Floats, squares: Floats) -> None:
    n = cross.shape[0]
    p0, p1, p2, p3 = wa[start], wa[start + 1], wa[start + 2], wa[start + 3]
    p4, p5, p6, p7 = wa[start + 4], wa[start + 5], wa[start + 6], wa[start + 7]
    q0, q1, q2, q3 = w[start], w[start + 1], w[start + 2], w[start + 3]
    q4, q5, q6, q7 = w[start + 4], w[start + 5], w[start + 6], w[start + 7]
    for k in range(n):
        g0, g1, g2, g3 = values[at + k], values[at + n + k], values[at + 2 * n + k], values[at + 3 * n + k]
        g4, g5, g6, g7 = values[at + 4 * n + k], values[at + 5 * n + k], values[at + 6 * n + k], values[at + 7 * n + k]
        cross[k] = p0 * g0 + p1 * g1 + p2 * g2 + p3 * g3 + p4 * g4 + p5 * g5 + p6 * g6 + p7 * g7
        low = q0 * (g0 * g0) + q1 * (g1 * g1) + q2 * (g2 * g2) + q3 * (g3 * g3)
        squares[k] = low + q4 * (g4 * g4) + q5 * (g5 * g5) + q6 * (g6 * g6) + q7 * (g7 * g7)
