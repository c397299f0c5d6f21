"""Q4_K, compiled: the reference's search on 8 super-blocks at once, a block of 32 in each of 64 lanes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...dtypes import Q4_K as DTYPE
from ..reference.checks import SEARCH_LIMIT, refuse_scale, refuse_values, relative_importance
from ..reference.q4_k import BLEND, EDGES, GRID, NEIGHBOURS
from ..scheme import Packed, Rows
from .half import HALF_LIMIT, narrow_half, round_scale, widen_half
from .jit import jit
from .tile import (
    ONE,
    SOUND,
    STEP,
    TINY,
    VALUE_REFUSED,
    ZERO,
    Bits,
    Floats,
    code,
    extremes,
    load,
    load_importance,
    magnitude_bits,
    reciprocal,
    spread,
    sum_squares,
    sum_super,
)

__all__ = ["DTYPE", "decode", "encode"]

BLOCK, BLOCKS, COUNT = 32, 8, 8
LANES = BLOCKS * COUNT
LIMIT_BITS = SEARCH_LIMIT.view(np.uint32)
WIDTH, HALF_ELEMENTS = np.float32(BLOCK), np.float32(DTYPE.block // 2)
TOP, SCALE_TOP, SINGULAR = np.float32(15), np.float32(63), np.float32(1e-5)
INFINITE = np.float32(np.inf)

Bytes = NDArray[np.uint8]


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """The reference's bytes and errors: [n, columns] float32 -> [n, columns / 256 * 144] uint8."""
    n, columns = rows.shape
    packed = np.empty((n, DTYPE.row_nbytes(columns)), np.uint8)
    blocks = np.ascontiguousarray(rows).reshape(-1, DTYPE.block)
    relative = np.empty((0, DTYPE.block), np.float32)
    if importance is not None:
        relative = relative_importance(importance, columns).reshape(-1, DTYPE.block)
    answer = _encode(blocks, blocks.view(np.uint32), relative, packed.reshape(-1, DTYPE.nbytes))
    if answer == VALUE_REFUSED:
        refuse_values(rows, SEARCH_LIMIT)
    elif answer != SOUND:
        refuse_scale(answer, columns, DTYPE.block)
    return packed


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 144] uint8 -> [n, columns] float32."""
    rows = np.empty((len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block), np.float32)
    _decode(np.ascontiguousarray(packed).reshape(-1, DTYPE.nbytes), rows.reshape(-1, DTYPE.block))
    return rows


@jit
def _encode(blocks: Floats, bits: Bits, importance: Floats, packed: Bytes) -> int:
    shape = (BLOCK, LANES)
    x, w, centred = np.empty(shape, np.float32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    fit = np.empty((2, LANES), np.float32)  # scale and low end of each block, before they are rounded
    fixed = np.empty((3, LANES), np.float32)  # sum w, its inverse, weighted mean
    kept, tried = np.empty((2, LANES), np.float32), np.empty((2, LANES), np.float32)  # 6-bit scales and mins
    kept_super, tried_super = np.empty((3, COUNT), np.float32), np.empty((3, COUNT), np.float32)  # d, dmin, error
    q = np.empty(shape, np.uint8)
    overflowed = SOUND
    for first in range(0, blocks.shape[0], COUNT):
        if magnitude_bits(bits, first, min(first + COUNT, blocks.shape[0])) >= LIMIT_BITS:
            return VALUE_REFUSED
        load(blocks, first, x)
        if importance.shape[0]:
            load_importance(importance, first, w)
            _importance_weights(x, w)
        else:
            _plain_weights(x, w)
        _centre(x, w, fixed, centred)
        _fit_blocks(x, w, centred, fixed, fit)
        kept_super[2] = INFINITE
        for attempt in range(2):
            if attempt == 0:
                overflowed = _largest(fit, tried_super, first, overflowed)
            else:
                _fit_super(x, w, centred, fixed, kept, kept_super, tried_super)
            _round_scales(x, w, fixed, fit, tried_super, tried)
            _keep_less(tried_super, tried, kept_super, kept)
        _final_codes(x, kept_super, kept, q)
        _store(q, kept, kept_super, first, packed)
    return overflowed


@jit
def _plain_weights(x: Floats, w: Floats) -> None:
    """rms of the block + |x|."""
    rms = np.empty(LANES, np.float32)
    sum_squares(x, rms)
    for lane in range(LANES):
        rms[lane] = np.sqrt(rms[lane] / WIDTH)
    for i in range(BLOCK):
        for lane in range(LANES):
            w[i, lane] = rms[lane] + abs(x[i, lane])


@jit
def _importance_weights(x: Floats, w: Floats) -> None:
    """importance * sqrt(2 mean(x^2) + x^2) + BLEND * sqrt(2 mean(x^2)), in place of the importance in `w`."""
    twice_mean, even = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums = np.empty(COUNT, np.float32)
    sum_squares(x, twice_mean)
    sum_super(twice_mean, sums)
    spread(sums, twice_mean)
    for lane in range(LANES):
        twice_mean[lane] = twice_mean[lane] / HALF_ELEMENTS
        even[lane] = BLEND * np.sqrt(twice_mean[lane])
    for i in range(BLOCK):
        for lane in range(LANES):
            w[i, lane] = w[i, lane] * np.sqrt(twice_mean[lane] + x[i, lane] * x[i, lane]) + even[lane]


@jit
def _centre(x: Floats, w: Floats, fixed: Floats, centred: Floats) -> None:
    """fixed = sum w, its inverse, sum w x / sum w; centred = w (x - mean)."""
    fixed[:] = ZERO
    for i in range(0, BLOCK, STEP):
        for lane in range(LANES):
            sum_w, sum_wx = fixed[0, lane], fixed[2, lane]
            for k in range(STEP):
                sum_w += w[i + k, lane]
                sum_wx += w[i + k, lane] * x[i + k, lane]
            fixed[0, lane], fixed[2, lane] = sum_w, sum_wx
    for lane in range(LANES):
        fixed[1, lane] = reciprocal(fixed[0, lane])
        fixed[2, lane] = fixed[2, lane] * fixed[1, lane]
    for i in range(BLOCK):
        for lane in range(LANES):
            centred[i, lane] = w[i, lane] * (x[i, lane] - fixed[2, lane])


@jit
def _code_sums(x: Floats, w: Floats, centred: Floats, start: Floats, inverse: Floats, sums: Floats) -> None:
    """For q = code((x - start) * inverse): sums = sum w q, sum w q q, sum w (x - mean) q."""
    sums[:] = ZERO
    for i in range(0, BLOCK, STEP):
        for lane in range(LANES):
            sum_q, sum_qq, cross = sums[0, lane], sums[1, lane], sums[2, lane]
            zero_at, factor = start[lane], inverse[lane]
            for k in range(STEP):
                q = code((x[i + k, lane] - zero_at) * factor, ZERO, TOP)
                wq = w[i + k, lane] * q
                sum_q += wq
                sum_qq += wq * q
                cross += centred[i + k, lane] * q
            sums[0, lane], sums[1, lane], sums[2, lane] = sum_q, sum_qq, cross


@jit
def _fit_blocks(x: Floats, w: Floats, centred: Floats, fixed: Floats, fit: Floats) -> None:
    """Step 1: the scale and low end of each lane's block."""
    bottom, span, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    start, inverse, inverse_span = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums = np.empty((3, LANES), np.float32)
    extremes(x, bottom, span)
    for lane in range(LANES):
        bottom[lane] = min(bottom[lane], ZERO)
        span[lane] = span[lane] - bottom[lane]
        inverse_span[lane] = reciprocal(span[lane])
        positive = max(fixed[2, lane], ZERO)
        best[lane] = -(positive * positive * fixed[0, lane])
        fit[0, lane], fit[1, lane] = ZERO, min(fixed[2, lane], ZERO)
    for g in GRID:
        for edge in EDGES:
            for lane in range(LANES):
                inverse[lane] = g * inverse_span[lane]
                start[lane] = bottom[lane] + edge * (span[lane] * (ONE / g))
            _code_sums(x, w, centred, start, inverse, sums)
            _keep_better(sums, fixed, best, fit)


@jit
def _keep_better(sums: Floats, fixed: Floats, best: Floats, fit: Floats) -> None:
    """The line that fits a candidate's codes, through 0 where its low end would be above; the largest gain stays."""
    for lane in range(LANES):
        sum_q, sum_qq, cross = sums[0, lane], sums[1, lane], sums[2, lane]
        sum_w, mean = fixed[0, lane], fixed[2, lane]
        mean_q = sum_q * fixed[1, lane]
        fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
        low = mean - fitted * mean_q
        through = cross + mean * sum_q
        fitted_through = through * reciprocal(sum_qq)
        above = low > ZERO
        gain = through * fitted_through - mean * mean * sum_w if above else cross * fitted
        scale = fitted_through if above else fitted
        low = ZERO if above else low
        better = gain > best[lane]
        best[lane] = gain if better else best[lane]
        fit[0, lane] = scale if better else fit[0, lane]
        fit[1, lane] = low if better else fit[1, lane]


@jit
def _largest(fit: Floats, state: Floats, first: int, overflowed: int) -> int:
    """d and dmin that put the largest block scale and the largest min on 63."""
    for b in range(COUNT):
        scale, low = fit[0, b], -fit[1, b]
        for j in range(1, BLOCKS):
            scale, low = max(scale, fit[0, j * COUNT + b]), max(low, -fit[1, j * COUNT + b])
        scale, low = scale / SCALE_TOP, low / SCALE_TOP
        if max(scale, low) >= HALF_LIMIT and overflowed == SOUND:
            overflowed = first + b
        state[0, b], state[1, b] = round_scale(scale), round_scale(low)
    return overflowed


@jit
def _round_scales(x: Floats, w: Floats, fixed: Floats, fit: Floats, state: Floats, rounded: Floats) -> None:
    """Step 2: the best 6-bit scale and min of each block under d and dmin of `state`, and each super-block's error."""
    d, dmin, best, low = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    scale, least, step, inverse = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    sums, under = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    spread(state[0], d)
    spread(state[1], dmin)
    best[:] = INFINITE
    rounded[:] = ZERO
    for lane in range(LANES):
        low[lane] = fit[1, lane]
    for k in NEIGHBOURS:
        for lane in range(LANES):
            nearest = code(fit[0, lane] * reciprocal(d[lane]), ZERO, SCALE_TOP)
            scale[lane] = min(max(nearest + k, ZERO), SCALE_TOP)
            step[lane] = d[lane] * scale[lane]
            inverse[lane] = reciprocal(step[lane])
        _code_mass(x, w, low, inverse, sums)
        for lane in range(LANES):
            wanted = step[lane] * (sums[lane] * fixed[1, lane]) - fixed[2, lane]
            least[lane] = code(wanted * reciprocal(dmin[lane]), ZERO, SCALE_TOP)
            under[lane] = dmin[lane] * least[lane]
        _exact_error(x, w, step, inverse, under, sums)
        for lane in range(LANES):
            better = sums[lane] < best[lane]
            best[lane] = sums[lane] if better else best[lane]
            rounded[0, lane] = scale[lane] if better else rounded[0, lane]
            rounded[1, lane] = least[lane] if better else rounded[1, lane]
    sum_super(best, state[2])


@jit
def _code_mass(x: Floats, w: Floats, start: Floats, inverse: Floats, mass: Floats) -> None:
    """mass[lane] = sum w q for q = code((x - start) * inverse)."""
    mass[:] = ZERO
    for i in range(0, BLOCK, STEP):
        for lane in range(LANES):
            sum_q, zero_at, factor = mass[lane], start[lane], inverse[lane]
            for k in range(STEP):
                sum_q += w[i + k, lane] * code((x[i + k, lane] - zero_at) * factor, ZERO, TOP)
            mass[lane] = sum_q


@jit
def _exact_error(x: Floats, w: Floats, step: Floats, inverse: Floats, under: Floats, error: Floats) -> None:
    """error[lane] = sum w (step * q - under - x)^2 for q = code((x + under) * inverse)."""
    error[:] = ZERO
    for i in range(0, BLOCK, STEP):
        for lane in range(LANES):
            e, size, factor, offset = error[lane], step[lane], inverse[lane], under[lane]
            for k in range(STEP):
                value = x[i + k, lane]
                off = (size * code((value + offset) * factor, ZERO, TOP) - offset) - value
                e += w[i + k, lane] * off * off
            error[lane] = e


@jit
def _fit_super(
    x: Floats, w: Floats, centred: Floats, fixed: Floats, rounded: Floats, state: Floats, fitted: Floats
) -> None:
    """Step 3: d and dmin that fit best to the codes under `state` and `rounded`."""
    start, inverse = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sums, normal = np.empty((3, LANES), np.float32), np.zeros((5, COUNT), np.float32)
    spread(state[0], inverse)
    spread(state[1], start)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * rounded[0, lane])
        start[lane] = -(start[lane] * rounded[1, lane])
    _code_sums(x, w, centred, start, inverse, sums)
    for j in range(BLOCKS):
        for b in range(COUNT):
            lane = j * COUNT + b
            sum_q, sum_qq, mean = sums[0, lane], sums[1, lane], fixed[2, lane]
            cross = sums[2, lane] + mean * sum_q
            scale, least = rounded[0, lane], rounded[1, lane]
            normal[0, b] += scale * scale * sum_qq
            normal[1, b] += scale * least * sum_q
            normal[2, b] += least * least * fixed[0, lane]
            normal[3, b] += scale * cross
            normal[4, b] += least * (mean * fixed[0, lane])
    for b in range(COUNT):
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
    for b in range(COUNT):
        if tried_super[2, b] < kept_super[2, b]:
            for row in range(3):
                kept_super[row, b] = tried_super[row, b]
            for j in range(BLOCKS):
                kept[0, j * COUNT + b] = tried[0, j * COUNT + b]
                kept[1, j * COUNT + b] = tried[1, j * COUNT + b]


@jit
def _final_codes(x: Floats, state: Floats, rounded: Floats, q: Bytes) -> None:
    """Codes under the final scales and mins."""
    inverse, under = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    spread(state[0], inverse)
    spread(state[1], under)
    for lane in range(LANES):
        inverse[lane] = reciprocal(inverse[lane] * rounded[0, lane])
        under[lane] = under[lane] * rounded[1, lane]
    for i in range(BLOCK):
        for lane in range(LANES):
            q[i, lane] = np.uint8(np.int32(code((x[i, lane] + under[lane]) * inverse[lane], ZERO, TOP)))


@jit
def _store(q: Bytes, rounded: Floats, state: Floats, first: int, packed: Bytes) -> None:
    """Write the tile's super-blocks as bytes."""
    for b in range(min(COUNT, packed.shape[0] - first)):
        row = packed[first + b]
        for pair in range(2):
            bits = narrow_half(state[pair, b])
            row[2 * pair], row[2 * pair + 1] = np.uint8(bits & np.uint32(255)), np.uint8(bits >> np.uint32(8))
        for j in range(4):
            lane, high = j * COUNT + b, (j + 4) * COUNT + b
            scale, high_scale = np.int32(rounded[0, lane]), np.int32(rounded[0, high])
            least, high_least = np.int32(rounded[1, lane]), np.int32(rounded[1, high])
            row[4 + j] = np.uint8(scale | (high_scale >> 4) << 6)
            row[8 + j] = np.uint8(least | (high_least >> 4) << 6)
            row[12 + j] = np.uint8((high_scale & 15) | (high_least & 15) << 4)
        for run in range(BLOCKS // 2):
            lane = 2 * run * COUNT + b
            for i in range(BLOCK):
                row[16 + BLOCK * run + i] = q[i, lane] | q[i, lane + COUNT] << 4


@jit
def _decode(packed: Bytes, blocks: Floats) -> None:
    for n in range(packed.shape[0]):
        row = packed[n]
        d = widen_half(np.uint32(row[0]) | np.uint32(row[1]) << np.uint32(8))
        dmin = widen_half(np.uint32(row[2]) | np.uint32(row[3]) << np.uint32(8))
        for j in range(BLOCKS):
            if j < 4:
                scale, least = row[4 + j] & 63, row[8 + j] & 63
            else:
                scale = (row[8 + j] & 15) | (row[j] >> 6) << 4
                least = row[8 + j] >> 4 | (row[4 + j] >> 6) << 4
            step, under = d * np.float32(scale), dmin * np.float32(least)
            shift = 4 * (j & 1)
            for i in range(BLOCK):
                q = np.int32(row[16 + BLOCK * (j >> 1) + i] >> shift & 15)
                blocks[n, BLOCK * j + i] = step * np.float32(q) - under
