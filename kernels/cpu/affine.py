"""The search of reference/affine.py, compiled once for all its formats: 64 blocks at once, each in a lane of its own.

A format's constants come in an `Affine`, its shape with them, so that nothing is compiled anew for another format. The
codes leave in chunks that stay in the processor's cache until they are packed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ...dtypes import DType
from ..reference.affine import ELEMENTS, Affine, stretched
from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..scheme import Packed, Rows
from .affine_sums import LANES, centre, code_mass, code_sums, exact_error
from .half import HALF_LIMIT, round_scale
from .jit import jit
from .tile import (
    ONE,
    SOUND,
    TINY,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    code,
    extremes,
    height,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
    spread,
    sum_squares,
    sum_super,
)

CHUNK = 1024  # super-blocks between two calls of `pack`
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
SINGULAR, INFINITE = np.float32(1e-5), np.float32(np.inf)

Bytes = NDArray[np.uint8]
Pack = Callable[[Floats, Floats, Bytes, Bytes, Bytes], Packed]


def encode(affine: Affine, dtype: DType, pack: Pack, rows: Rows, importance: Rows | None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, row_nbytes] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, dtype.row_nbytes(columns)), np.uint8)
    supers = packed.reshape(-1, dtype.nbytes)
    x = np.ascontiguousarray(rows).reshape(-1, ELEMENTS)
    relative = np.empty((0, ELEMENTS), np.float32)
    if importance is not None:
        relative = relative_importance(importance, columns).reshape(-1, ELEMENTS)
    shape = (min(CHUNK, len(x)), affine.blocks)
    q = np.empty((*shape, ELEMENTS // affine.blocks), np.uint8)
    scales, mins, halves = np.empty(shape, np.uint8), np.empty(shape, np.uint8), np.empty((2, shape[0]), np.float32)
    overflowed = SOUND
    for first in range(0, len(x), CHUNK):
        answer = _search(affine, x, x.view(np.uint32), relative, first, halves, scales, mins, q)
        if answer == VALUE_REFUSED:
            refuse_values(rows, SEARCH_LIMIT)
        overflowed = answer if overflowed == SOUND else overflowed
        end = min(CHUNK, len(x) - first)
        d, dmin = stretched(affine, halves[0, :end]), stretched(affine, halves[1, :end])
        supers[first : first + end] = pack(d, dmin, q[:end], scales[:end], mins[:end])
    if overflowed != SOUND:
        refuse_scale(overflowed, columns, dtype.block)
    return packed


@jit
def _search(
    affine: Affine,
    blocks: Floats,
    bits: Bits,
    importance: Floats,
    start: int,
    halves: Floats,
    scales: Bytes,
    mins: Bytes,
    q: Bytes,
) -> int:
    """The super-blocks from `start` on that `q` has room for: d, dmin, scales, mins and codes."""
    count = LANES // affine.blocks  # super-blocks in a tile
    shape = (q.shape[2], LANES)
    x, w, centred = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    fit = np.empty((2, LANES), np.float32)  # scale and low end of each block, before they are rounded
    fixed = np.empty((3, LANES), np.float32)  # sum w, its inverse, weighted mean
    kept, tried = np.empty((2, LANES), np.float32), np.empty((2, LANES), np.float32)  # integer scales and mins
    kept_super, tried_super = np.empty((3, count), np.float32), np.empty((3, count), np.float32)  # d, dmin, error
    overflowed = SOUND
    for first in range(start, min(start + q.shape[0], blocks.shape[0]), count):
        if magnitude_bits(bits, first, min(first + count, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        if importance.shape[0]:
            load_importance(importance, first, w)
            _importance_weights(affine, x, w)
        else:
            _plain_weights(affine, x, w)
        centre(x, w, fixed, centred)
        fit_blocks(affine, x, w, centred, fixed, fit)
        kept_super[2] = INFINITE
        for attempt in range(2):
            if attempt == 0:
                overflowed = _largest(affine, fit, tried_super, first, overflowed)
            else:
                _fit_super(affine, x, w, centred, fixed, kept, kept_super, tried_super)
            neighbours = affine.neighbours if attempt == 0 else affine.again
            _round_scales(affine, neighbours, x, w, fixed, fit, tried_super, tried)
            _keep_less(tried_super, tried, kept_super, kept)
        _store(affine, x, kept_super, kept, first - start, halves, scales, mins, q)
    return overflowed


@jit
def _plain_weights(affine: Affine, x: Floats, w: Floats) -> None:
    """even * rms of the block + |x|."""
    rms = np.empty(LANES, np.float32)
    sum_squares(x, rms)
    for lane in range(LANES):
        rms[lane] = affine.even * np.sqrt(rms[lane] / np.float32(x.shape[0]))
    for i in range(height(x)):
        for lane in range(LANES):
            w[i, lane] = rms[lane] + abs(x[i, lane])


@jit
def _importance_weights(affine: Affine, x: Floats, w: Floats) -> None:
    """importance * sqrt(m + x^2) + blend * sqrt(m), in place of the importance in `w`."""
    mean, even = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums = np.empty(LANES // affine.blocks, np.float32)
    sum_squares(x, mean)
    sum_super(mean, sums)
    spread(sums, mean)
    for lane in range(LANES):
        mean[lane] = mean[lane] / affine.over
        even[lane] = affine.blend * np.sqrt(mean[lane])
    for i in range(height(x)):
        for lane in range(LANES):
            w[i, lane] = w[i, lane] * np.sqrt(mean[lane] + x[i, lane] * x[i, lane]) + even[lane]


@jit
def fit_blocks(affine: Affine, x: Floats, w: Floats, centred: Floats, fixed: Floats, fit: Floats) -> None:
    """Step 1: the scale and low end of each lane's block."""
    bottom, span, inverse_span = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    start, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums = np.empty((3, LANES), np.float32)
    board = np.empty(6 * LANES, np.float32)  # rows: the three of `fixed`; of the best: gain, scale, low
    extremes(x, bottom, span)
    for lane in range(LANES):
        bottom[lane] = min(bottom[lane], affine.highest)
        span[lane] = span[lane] - bottom[lane]
        inverse_span[lane] = reciprocal(span[lane])
    for lane in range(LANES):
        above = max(fixed[2, lane] - affine.highest, ZERO)
        board[3 * LANES + lane] = -(above * above * fixed[0, lane])
        board[4 * LANES + lane], board[5 * LANES + lane] = ZERO, min(fixed[2, lane], affine.highest)
        for row in range(3):
            board[row * LANES + lane] = fixed[row, lane]
    for g in affine.grid:
        for edge in affine.edges:
            for lane in range(LANES):
                inverse[lane] = g * inverse_span[lane]
                start[lane] = bottom[lane] + edge * (span[lane] * (ONE / g))
            code_sums(x, w, centred, start, inverse, affine.top, sums)
            _keep_better(sums, affine.highest, board)
    for lane in range(LANES):
        fit[0, lane], fit[1, lane] = board[4 * LANES + lane], board[5 * LANES + lane]


@jit
def _keep_better(sums: Floats, highest: np.float32, board: Floats) -> None:
    """The line that fits a candidate's codes, through 0 where its low end would be above; the largest gain stays.

    Rows of one array, because LLVM vectorises no loop over so many arrays that might overlap.
    """
    for lane in range(LANES):
        sum_w, inverse, mean = board[lane], board[LANES + lane], board[2 * LANES + lane]
        best, best_scale, best_low = board[3 * LANES + lane], board[4 * LANES + lane], board[5 * LANES + lane]
        sum_q, sum_qq, cross = sums[0, lane], sums[1, lane], sums[2, lane]
        mean_q = sum_q * inverse
        fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
        low = mean - fitted * mean_q
        through = cross + mean * sum_q
        fitted_through = through * reciprocal(sum_qq)
        above = low > highest
        gain = through * fitted_through - mean * mean * sum_w if above else cross * fitted
        scale = fitted_through if above else fitted
        low = ZERO if above else low
        better = gain > best
        board[3 * LANES + lane] = gain if better else best
        board[4 * LANES + lane] = scale if better else best_scale
        board[5 * LANES + lane] = low if better else best_low


@jit
def _largest(affine: Affine, fit: Floats, state: Floats, first: int, overflowed: int) -> int:
    """d and dmin that put the largest block scale and the largest min on the top."""
    count = LANES // affine.blocks
    for b in range(count):
        scale, low = fit[0, b], -fit[1, b]
        for j in range(1, affine.blocks):
            scale, low = max(scale, fit[0, j * count + b]), max(low, -fit[1, j * count + b])
        scale, low = scale / affine.scale_top, low / affine.scale_top
        if max(scale, low) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = first + b
        state[0, b], state[1, b] = round_scale(scale), round_scale(low)
    return overflowed


@jit
def _round_scales(
    affine: Affine, neighbours: Floats, x: Floats, w: Floats, fixed: Floats, fit: Floats, state: Floats, rounded: Floats
) -> None:
    """Step 2: the best scale and min of each block under d and dmin of `state`, and each super-block's error."""
    # rows: d, dmin, best, low, scale, least, step, inverse, sums, under
    lanes = np.empty((10, LANES), np.float32)
    d, dmin, best, low, scale = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    least, step, inverse, sums, under = lanes[5], lanes[6], lanes[7], lanes[8], lanes[9]
    spread(state[0], d)
    spread(state[1], dmin)
    best[:] = INFINITE
    rounded[:] = ZERO
    for lane in range(LANES):
        low[lane] = fit[1, lane]
    for k in neighbours:
        for lane in range(LANES):  # three loops: LLVM vectorises none over so many arrays that might overlap
            nearest = code(fit[0, lane] * reciprocal(d[lane]), ZERO, affine.scale_top)
            scale[lane] = min(max(nearest + k, ZERO), affine.scale_top)
        for lane in range(LANES):
            step[lane] = d[lane] * scale[lane]
        for lane in range(LANES):
            inverse[lane] = reciprocal(step[lane])
        code_mass(x, w, low, inverse, affine.top, sums)
        for lane in range(LANES):
            wanted = step[lane] * (sums[lane] * fixed[1, lane]) - fixed[2, lane]
            least[lane] = code(wanted * reciprocal(dmin[lane]), ZERO, affine.scale_top)
        for lane in range(LANES):
            under[lane] = dmin[lane] * least[lane]
        exact_error(x, w, step, inverse, under, affine.top, sums)
        for lane in range(LANES):
            better = sums[lane] < best[lane]
            best[lane] = sums[lane] if better else best[lane]
            rounded[0, lane] = scale[lane] if better else rounded[0, lane]
            rounded[1, lane] = least[lane] if better else rounded[1, lane]
    sum_super(best, state[2])


@jit
def _fit_super(
    affine: Affine, x: Floats, w: Floats, centred: Floats, fixed: Floats, rounded: Floats, state: Floats, fitted: Floats
) -> None:
    """Step 3: d and dmin that fit best to the codes under `state` and `rounded`."""
    start, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums, normal = np.empty((3, LANES), np.float32), np.zeros((5, state.shape[1]), np.float32)
    count = state.shape[1]
    spread(state[0], inverse)
    spread(state[1], start)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * rounded[0, lane])
        start[lane] = -(start[lane] * rounded[1, lane])
    code_sums(x, w, centred, start, inverse, affine.top, sums)
    for j in range(affine.blocks):
        for b in range(count):
            lane = j * count + b
            sum_q, sum_qq, mean = sums[0, lane], sums[1, lane], fixed[2, lane]
            cross = sums[2, lane] + mean * sum_q
            scale, least = rounded[0, lane], rounded[1, lane]
            normal[0, b] += scale * scale * sum_qq
            normal[1, b] += scale * least * sum_q
            normal[2, b] += least * least * fixed[0, lane]
            normal[3, b] += scale * cross
            normal[4, b] += least * (mean * fixed[0, lane])
    for b in range(count):
        fitted[0, b], fitted[1, b] = _solve(normal[:, b], state[0, b], state[1, b])


@jit
def _solve(normal: Floats, d_before: np.float32, dmin_before: np.float32) -> tuple[np.float32, np.float32]:
    """The two normal equations, rounded to fp16; what was before where they are singular, negative or too large."""
    aa, ab, bb, ax, bx = normal[0], normal[1], normal[2], normal[3], normal[4]
    determinant = aa * bb - ab * ab
    d, dmin = ax * reciprocal(aa), dmin_before
    if determinant > SINGULAR * (aa * bb):
        inverse = ONE / determinant
        d, dmin = (ax * bb - bx * ab) * inverse, (ax * ab - bx * aa) * inverse
    if not (d > TINY and dmin >= ZERO):
        return d_before, dmin_before
    return round_scale(d) if d < HALF_LIMIT else d_before, round_scale(dmin) if dmin < HALF_LIMIT else dmin_before


@jit
def _keep_less(tried_super: Floats, tried: Floats, kept_super: Floats, kept: Floats) -> None:
    """Take over the tried solution of each super-block where its error is less."""
    for b in range(tried_super.shape[1]):
        if tried_super[2, b] < kept_super[2, b]:
            for row in range(3):
                kept_super[row, b] = tried_super[row, b]
            for lane in range(b, LANES, tried_super.shape[1]):
                kept[0, lane] = tried[0, lane]
                kept[1, lane] = tried[1, lane]


@jit
def _store(
    affine: Affine,
    x: Floats,
    state: Floats,
    rounded: Floats,
    first: int,
    halves: Floats,
    scales: Bytes,
    mins: Bytes,
    q: Bytes,
) -> None:
    """Codes under the final scales and mins, and those, from tile order to super-block order."""
    count = state.shape[1]
    for b in range(min(count, q.shape[0] - first)):
        halves[0, first + b], halves[1, first + b] = state[0, b], state[1, b]
        for j in range(affine.blocks):
            lane = j * count + b
            scales[first + b, j] = np.uint8(np.int32(rounded[0, lane]))
            mins[first + b, j] = np.uint8(np.int32(rounded[1, lane]))
    tile = np.empty(x.shape, np.uint8)
    inverse, under = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    spread(state[0], inverse)
    spread(state[1], under)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * rounded[0, lane])
        under[lane] = under[lane] * rounded[1, lane]
    for i in range(height(x)):
        for lane in range(LANES):
            tile[i, lane] = np.uint8(np.int32(code((x[i, lane] + under[lane]) * inverse[lane], ZERO, affine.top)))
    for b in range(min(count, q.shape[0] - first)):
        for j in range(affine.blocks):
            for i in range(height(x)):
                q[first + b, j, i] = tile[i, j * count + b]
