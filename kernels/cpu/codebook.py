"""The codebook search, compiled: a super-block at a time, its 32 or 64 groups side by side, candidate after candidate.

    tile    | a: 256 | w: 256 | w a: 256 |           weight i of group j of each at i * lanes + j
    words   candidates of group j: 4 values in the bytes of a word, or 8 levels in half a word, fetched from the table
    best    | error | cross | squares | candidate |  of each group so far, twice, read and written in turn: one written back
            where it was read becomes a masked store, which costs AMD's processors more than the rest of the loop

All that a loop over lanes touches lies in three arrays at constant distances: LLVM vectorises it after three checks of
overlap. With a table read inside the loop it does not. Candidates as floats would not fit the cache beside the tile.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..reference.codebook import HALF, TRIED, TWO, WIDTH, Codebook, Coded, neighbours, raised
from ..reference.grids import LEVELS, points
from ..scheme import Rows
from .codebook_input import INFINITE, Bytes, find_signs, find_weights, transpose
from .half import HALF_LIMIT, round_scale
from .jit import jit
from .tile import MAGIC, ONE, SOUND, ZERO, Floats, reciprocal

__all__ = ["search"]

TWO_BITS, BYTE, BITS8, BITS16, BITS24 = np.uint32(3), np.uint32(255), np.uint32(8), np.uint32(16), np.uint32(24)

Integers = NDArray[np.int32]
Words = NDArray[np.uint32]


@cache
def _table(name: str, count: int) -> Words:
    """Each cell's candidates: 4 values in the bytes of a word, or 8 levels of 2 bits in half a word."""
    indexes, values = neighbours(name, count)
    if values.shape[1] == 4:
        return np.ascontiguousarray(values.transpose(0, 2, 1).astype(np.uint8)).view("<u4").reshape(-1)
    levels = points(name)[indexes].astype(np.uint16) << np.arange(0, 16, 2, dtype=np.uint16)
    halves: NDArray[np.uint16] = np.bitwise_or.reduce(levels, axis=2).astype("<u2")
    return halves.view("<u4").reshape(-1)


def _bend(name: str) -> tuple[float, float, float]:
    """value = b0 + level * (b1 + level * b2), exact for three levels in fp32; bytes hold values as they are."""
    levels = LEVELS[name]
    if len(levels) != 3:
        return 0.0, 1.0, 0.0
    half = (levels[2] - 2 * levels[1] + levels[0]) / 2
    return levels[0], levels[1] - levels[0] - half, half


def search(book: Codebook, rows: Rows, importance: Rows | None) -> Coded:
    """The reference's codes and errors."""
    columns = rows.shape[1]
    refuse_values(rows, SEARCH_LIMIT)
    x = np.ascontiguousarray(rows).reshape(-1, WIDTH)
    relative = np.empty((0, WIDTH), np.float32)
    if importance is not None:
        relative = relative_importance(importance, columns).reshape(-1, WIDTH)
    n_points, group = points(book.name).shape
    constants = np.array([book.variance, book.blend, book.plain, book.unit, book.top_scale, book.slope], np.float32)
    counts = (book.scanned, book.nearest, book.wide)
    shape = np.array([group, len(LEVELS[book.name]), book.block, book.span, *counts], np.int32)
    b0, b1, b2 = _bend(book.name)
    shifts = np.array([[book.offset + shift, b0 + shift, b1, b2] for shift in book.shifts], np.float32)
    d, scales = np.empty(len(x), np.float32), np.empty((len(x), WIDTH // book.block), np.uint8)
    found = np.empty((len(x), WIDTH // group), np.int32)
    signs = np.empty((len(x), 0 if LEVELS[book.name][0] < 0 else WIDTH // 8), np.uint8)
    targets = np.array(book.targets, np.float32)
    table = _table(book.name, book.wide)
    sums = np.empty((3, len(x)), np.float32)
    answer = _search(x, relative, constants, shape, book.even, shifts, targets, table, d, scales, found, signs, sums)
    if answer != SOUND:
        refuse_scale(answer, columns, WIDTH)
    indexes = neighbours(book.name, book.wide)[0].reshape(-1)
    shifted, place = np.divmod(found, np.int32(len(indexes)))
    return Coded(
        raised(book, d, sums[0], sums[1], sums[2]),
        scales,
        indexes[place] + (shifted * n_points).astype(np.uint16),
        signs,
    )


@jit
def _search(
    x: Floats,
    importance: Floats,
    constants: Floats,
    shape: Integers,
    even_signs: bool,
    shifts: Floats,
    targets: Floats,
    table: Words,
    d: Floats,
    scales: Bytes,
    found: Integers,
    signs: Bytes,
    fits: Floats,
) -> int:
    """Steps 0 to 3; fits: cross, squares and sum(w a a) of each super-block."""
    unit, top_scale = constants[3], constants[4]
    blocks, lanes = scales.shape[1], found.shape[1]
    a, w, tile = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty(3 * WIDTH, np.float32)
    best, cells = np.empty((shifts.shape[0], 8 * lanes), np.float32), np.empty((shifts.shape[0], lanes), np.int32)
    words, lane_steps = np.empty(shape[6] * WIDTH // 4, np.uint32), np.empty((3, lanes), np.float32)
    sums, least = np.empty((4, blocks), np.float32), np.empty((3, blocks), np.float32)
    step, nearest, tried = np.empty(blocks, np.float32), np.empty(blocks, np.float32), np.empty(blocks, np.float32)
    for n in range(x.shape[0]):
        find_weights(x[n], importance, n, constants, w)
        find_signs(x[n], w, even_signs, a, signs[n])
        transpose(a, w, shape[0], tile)
        _fit_blocks(a, tile, shape, constants[5], shifts, targets, table, words, best, cells, lane_steps, sums, step)
        largest = ZERO
        for b in range(blocks):
            largest = max(largest, step[b])
        d[n] = largest / ((TWO * top_scale + ONE) * unit)
        if d[n] >= HALF_LIMIT:
            return n
        d[n] = round_scale(d[n])
        inverse = reciprocal(d[n] * unit)
        for b in range(blocks):
            nearest[b] = np.floor(HALF * (step[b] * inverse - ONE))
        fitted = _round_scales(
            tile, shape, constants, shifts, table, words, best, cells, lane_steps, sums, least, nearest, d[n], tried
        )
        d[n] = round_scale(fitted) if fitted > ZERO and fitted < HALF_LIMIT else d[n]
        for b in range(blocks):
            scaled = (d[n] * unit) * (TWO * tried[b] + ONE)
            _set_step(lane_steps, b, lanes // blocks, scaled, reciprocal(scaled) * constants[5])
            scales[n, b] = np.uint8(tried[b])
        _match(tile, shape, shape[6], shifts, table, words, best, cells, lane_steps, sums)
        fits[0, n], fits[1, n] = _sum_super(tried, unit, sums[0], sums[1])
        fits[2, n] = _sum_whole(a, w, nearest)
        for j in range(lanes):
            found[n, j] = cells[0, j]
    return SOUND


@jit
def _fit_blocks(
    a: Floats, tile: Floats, shape: Integers, slope: np.float32, shifts: Floats, targets: Floats, table: Words,
    words: Words, best: Floats, cells: Integers, lane_steps: Floats, sums: Floats, step: Floats,
) -> None:  # fmt: skip
    """Step 1. sums: cross, squares, the block's largest, its gain."""
    block, per_block = shape[2], cells.shape[1] // step.shape[0]
    for b in range(step.shape[0]):
        largest = ZERO
        for i in range(b * block, (b + 1) * block):
            largest = max(largest, abs(a[i]))
        sums[2, b], sums[3, b], step[b] = largest, ZERO, ZERO
    for k in range(targets.shape[0]):
        target = targets[k]
        for b in range(step.shape[0]):
            _set_step(lane_steps, b, per_block, sums[2, b] / target, target * reciprocal(sums[2, b]) * slope)
        _match(tile, shape, shape[4], shifts, table, words, best, cells, lane_steps, sums)
        for b in range(step.shape[0]):
            fitted = sums[0, b] * reciprocal(sums[1, b])
            gain = sums[0, b] * fitted
            step[b] = fitted if gain > sums[3, b] else step[b]
            sums[3, b] = gain if gain > sums[3, b] else sums[3, b]


@jit
def _round_scales(
    tile: Floats, shape: Integers, constants: Floats, shifts: Floats, table: Words, words: Words, best: Floats,
    cells: Integers, lane_steps: Floats, sums: Floats, least: Floats, nearest: Floats, d: np.float32, scales: Floats,
) -> np.float32:  # fmt: skip
    """Step 2 under `d`: every block's scale; the d that would suit their points better."""
    unit, top_scale, slope = d * constants[3], constants[4], constants[5]
    blocks = nearest.shape[0]
    per_block = cells.shape[1] // blocks
    for b in range(blocks):
        least[0, b], scales[b] = INFINITE, ZERO
        least[1, b] = least[2, b] = ZERO
    for k in range(len(TRIED)):
        for b in range(blocks):
            step = unit * (TWO * min(max(nearest[b] + TRIED[k], ZERO), top_scale) + ONE)
            _set_step(lane_steps, b, per_block, step, reciprocal(step) * slope)
        _match(tile, shape, shape[5], shifts, table, words, best, cells, lane_steps, sums)
        for b in range(blocks):
            scale = min(max(nearest[b] + TRIED[k], ZERO), top_scale)
            step = unit * (TWO * scale + ONE)
            error = step * (step * sums[1, b] - (sums[0, b] + sums[0, b]))
            if error < least[0, b]:
                least[0, b], least[1, b], least[2, b], scales[b] = error, sums[0, b], sums[1, b], scale
    cross, squares = _sum_super(scales, constants[3], least[1], least[2])
    fitted: np.float32 = cross * reciprocal(squares)
    return fitted


@jit
def _sum_super(scales: Floats, unit: np.float32, crosses: Floats, squared: Floats) -> tuple[np.float32, np.float32]:
    cross, squares = ZERO, ZERO
    for b in range(scales.shape[0]):
        factor = (TWO * scales[b] + ONE) * unit
        cross += factor * crosses[b]
        squares += factor * factor * squared[b]
    return cross, squares


@jit
def _sum_whole(a: Floats, w: Floats, totals: Floats) -> np.float32:
    """The sum of w a a, block by block; all blocks advance together, since additions wait for one another."""
    whole: np.float32 = ZERO
    blocks = totals.shape[0]
    width = WIDTH // blocks
    for b in range(blocks):
        totals[b] = ZERO
    for i in range(width):
        for b in range(blocks):
            at = b * width + i
            totals[b] += w[at] * a[at] * a[at]
    for b in range(blocks):
        whole += totals[b]
    return whole


@jit
def _set_step(lane_steps: Floats, b: int, per_block: int, step: np.float32, factor: np.float32) -> None:
    for j in range(b * per_block, (b + 1) * per_block):
        lane_steps[0, j], lane_steps[1, j], lane_steps[2, j] = step * step, step + step, factor


@jit
def _match(
    tile: Floats, shape: Integers, count: int, shifts: Floats, table: Words, words: Words, best: Floats, cells: Integers,
    lane_steps: Floats, sums: Floats,
) -> None:  # fmt: skip
    """Points under the steps: each block's cross and squares in `sums`, each group's place in the table in `cells[0]`."""
    group, levels, available = shape[0], shape[1], shape[6]
    lanes, per_word = cells.shape[1], group // 4
    for s in range(shifts.shape[0]):
        _cells(tile, group, levels, shifts[s, 0], lane_steps[2], cells[s])
        _fetch(table, available // per_word, count // per_word, cells[s], words)
        if group == 4:
            _match_4(tile, words, count, lane_steps, best[s])
        elif shifts[s, 3] == ZERO:
            _match_8(tile, words, count, shifts[s], None, lane_steps, best[s])
        else:
            _match_8(tile, words, count, shifts[s], shifts[s, 3], lane_steps, best[s])
        first = s * (table.shape[0] * per_word)
        for j in range(lanes):
            cells[s, j] = first + cells[s, j] * available + np.int32(best[s, 3 * lanes + j])
    span = shape[3] // group
    for s in range(1, shifts.shape[0]):
        for first in range(0, lanes, span):
            before, after = ZERO, ZERO
            for j in range(first, first + span):
                before += best[0, j]
                after += best[s, j]
            if after < before:
                for j in range(first, first + span):
                    cells[0, j] = cells[s, j]
                    for k in range(3):
                        best[0, k * lanes + j] = best[s, k * lanes + j]
    per_block = lanes // sums.shape[1]
    for b in range(sums.shape[1]):
        cross, squares = ZERO, ZERO
        for j in range(b * per_block, (b + 1) * per_block):
            cross += best[0, lanes + j]
            squares += best[0, 2 * lanes + j]
        sums[0, b], sums[1, b] = cross, squares


@jit
def _cells(tile: Floats, group: int, levels: int, offset: np.float32, factors: Floats, cells: Integers) -> None:
    top, power = np.float32(levels - 1), np.int32(1)
    lanes = cells.shape[0]
    for j in range(lanes):
        cells[j] = 0
    for i in range(group):
        for j in range(lanes):
            clamped = min(max(tile[i * lanes + j] * factors[j] - offset, ZERO), top)
            cells[j] += np.int32(np.float32(clamped + MAGIC) - MAGIC) * power
        power = np.int32(power * levels)


@jit
def _fetch(table: Words, width: int, count: int, cells: Integers, words: Words) -> None:
    lanes = cells.shape[0]
    for k in range(count):
        for j in range(lanes):
            words[k * lanes + j] = table[cells[j] * width + k]


@jit
def _match_4(tile: Floats, words: Words, count: int, lane_steps: Floats, best: Floats) -> None:
    """Written out, or LLVM does not vectorise over groups."""
    for j in range(64):
        best[j] = INFINITE
    for k in range(count):
        candidate = np.float32(k)
        here, there = (k & 1) * 256, (1 - (k & 1)) * 256
        for j in range(64):
            word = words[k * 64 + j]
            g0 = np.float32(np.int32(word & BYTE))
            g1 = np.float32(np.int32(word >> BITS8 & BYTE))
            g2 = np.float32(np.int32(word >> BITS16 & BYTE))
            g3 = np.float32(np.int32(word >> BITS24))
            cross = tile[512 + j] * g0 + tile[576 + j] * g1 + tile[640 + j] * g2 + tile[704 + j] * g3
            low = tile[256 + j] * (g0 * g0) + tile[320 + j] * (g1 * g1)
            squares = low + tile[384 + j] * (g2 * g2) + tile[448 + j] * (g3 * g3)
            error = lane_steps[0, j] * squares - lane_steps[1, j] * cross
            e, c, s, before = best[here + j], best[here + 64 + j], best[here + 128 + j], best[here + 192 + j]
            less = error < e
            best[there + j] = error if less else e
            best[there + 64 + j] = cross if less else c
            best[there + 128 + j] = squares if less else s
            best[there + 192 + j] = candidate if less else before


@jit
def _number(level: np.float32, b0: np.float32, b1: np.float32, b2: np.float32 | None) -> np.float32:
    """Of a level; without `b2` the levels are 1 apart: LLVM cannot know that, and a match takes a sixth more time."""
    number: np.float32 = b0 + level
    if b2 is not None:
        number = b0 + level * (b1 + level * b2)
    return number


@jit
def _match_8(
    tile: Floats, words: Words, count: int, shift: Floats, b2: np.float32 | None, lane_steps: Floats, best: Floats
) -> None:
    b0, b1 = shift[1], shift[2]
    for j in range(32):
        best[j] = INFINITE
    for k in range(count):
        candidate, lower = np.float32(k), np.uint32(16 * (k & 1))
        here, there = (k & 1) * 128, (1 - (k & 1)) * 128
        for j in range(32):
            word = words[k // 2 * 32 + j] >> lower
            l0 = np.float32(np.int32(word & TWO_BITS))
            l1 = np.float32(np.int32(word >> np.uint32(2) & TWO_BITS))
            l2 = np.float32(np.int32(word >> np.uint32(4) & TWO_BITS))
            l3 = np.float32(np.int32(word >> np.uint32(6) & TWO_BITS))
            l4 = np.float32(np.int32(word >> np.uint32(8) & TWO_BITS))
            l5 = np.float32(np.int32(word >> np.uint32(10) & TWO_BITS))
            l6 = np.float32(np.int32(word >> np.uint32(12) & TWO_BITS))
            l7 = np.float32(np.int32(word >> np.uint32(14) & TWO_BITS))
            g0, g1 = _number(l0, b0, b1, b2), _number(l1, b0, b1, b2)
            g2, g3 = _number(l2, b0, b1, b2), _number(l3, b0, b1, b2)
            g4, g5 = _number(l4, b0, b1, b2), _number(l5, b0, b1, b2)
            g6, g7 = _number(l6, b0, b1, b2), _number(l7, b0, b1, b2)
            half = tile[512 + j] * g0 + tile[544 + j] * g1 + tile[576 + j] * g2 + tile[608 + j] * g3
            cross = half + tile[640 + j] * g4 + tile[672 + j] * g5 + tile[704 + j] * g6 + tile[736 + j] * g7
            low = tile[256 + j] * (g0 * g0) + tile[288 + j] * (g1 * g1)
            low = low + tile[320 + j] * (g2 * g2) + tile[352 + j] * (g3 * g3)
            squares = low + tile[384 + j] * (g4 * g4) + tile[416 + j] * (g5 * g5)
            squares = squares + tile[448 + j] * (g6 * g6) + tile[480 + j] * (g7 * g7)
            error = lane_steps[0, j] * squares - lane_steps[1, j] * cross
            e, c, s, before = best[here + j], best[here + 32 + j], best[here + 64 + j], best[here + 96 + j]
            less = error < e
            best[there + j] = error if less else e
            best[there + 32 + j] = cross if less else c
            best[there + 64 + j] = squares if less else s
            best[there + 96 + j] = candidate if less else before
