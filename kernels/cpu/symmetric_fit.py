"""What the symmetric searches ask of each candidate, for 128 blocks at once, each in a lane of its own.

    inverse -> codes -> sum w x q, sum w q q -> fitted scale, gain        two candidates in one pass over the weights
    board = | gain | scale | mass: sum w q q | g |                        of the best candidate so far, a row of lanes each

One pass with two candidates waits for memory and for sums half as often: 3.5 cycles for 8 weights and a candidate on a Zen 3
core; one candidate took 5.1. A board is read from one array and written to another: of `a[i] = b if better else a[i]` LLVM
makes a masked store, and with such stores one candidate's turn took 57 cycles for 8 lanes, where two take 16 now.

Tiles are as in tile.py, seen as one dimension here, so that a row lies at a constant distance from the next.
"""

from __future__ import annotations

import numpy as np

from .jit import jit
from .tile import ZERO, Floats, reciprocal

LANES = 128  # constant, so that LLVM vectorises loops over lanes without a remainder
STEP, LEVEL_STEP = 8, 4  # elements in an inner loop, which LLVM unrolls; a table's take more registers
TWO = np.float32(2)


@jit
def code(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Clamp, then round half to even, as tile.py's `code`; one instruction less where a CPU can round."""
    rounded: np.float32 = np.rint(min(max(value, low), high))
    return rounded


@jit
def level(nearest: Floats, value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Clamp, then look up; the index is unsigned, which spares numba's test for a negative one."""
    clamped = min(max(value, low), high)
    found: np.float32 = nearest[np.uint32(np.int32((clamped - low) * TWO))]
    return found


@jit
def fit(
    nearest: Floats,
    low: np.float32,
    high: np.float32,
    candidates: Floats,
    tile: Floats,
    weights: Floats,
    inverse: Floats,
    boards: Floats,
) -> None:
    """Tries (g of the board or 0 + candidate) * inverse, two at a time; boards[0] holds the best before and after.

    boards[2, 4 * LANES]. Of an odd number of candidates the last one is tried twice, which changes nothing.
    """
    x, w = tile.reshape(-1), weights.reshape(-1)
    n = candidates.shape[0]
    first, second, sums = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(4 * LANES, np.float32)
    best, other = boards[0], boards[1]
    centre = np.empty(LANES, np.float32)
    for lane in range(LANES):
        centre[lane] = best[3 * LANES + lane]
    for attempt in range(0, n, 2):
        a, b = candidates[attempt], candidates[min(attempt + 1, n - 1)]
        for lane in range(LANES):
            first[lane], second[lane] = (centre[lane] + a) * inverse[lane], (centre[lane] + b) * inverse[lane]
        if nearest.shape[0] == 0:
            _sums(low, high, x, w, first, second, sums)
        else:
            _level_sums(nearest, low, high, x, w, first, second, sums)
        _keep_better(sums, a, b, best, other)
        best, other = other, best
    if (n + 1) // 2 % 2:
        for i in range(4 * LANES):
            other[i] = best[i]


@jit
def _sums(low: np.float32, high: np.float32, x: Floats, w: Floats, first: Floats, second: Floats, sums: Floats) -> None:
    """For q = code(x * first): rows sum w x q, sum w q q; then the same for `second`."""
    sums[:] = ZERO
    for start in range(0, x.shape[0], STEP * LANES):
        values, weights = x[start : start + STEP * LANES], w[start : start + STEP * LANES]
        for lane in range(LANES):
            c, s = sums[lane], sums[LANES + lane]
            c2, s2 = sums[2 * LANES + lane], sums[3 * LANES + lane]
            factor, factor2 = first[lane], second[lane]
            for k in range(STEP):
                value, weight = values[k * LANES + lane], weights[k * LANES + lane]
                q, q2 = code(value * factor, low, high), code(value * factor2, low, high)
                wq, wq2 = weight * q, weight * q2
                c += wq * value
                s += wq * q
                c2 += wq2 * value
                s2 += wq2 * q2
            sums[lane], sums[LANES + lane] = c, s
            sums[2 * LANES + lane], sums[3 * LANES + lane] = c2, s2


@jit
def _level_sums(
    nearest: Floats,
    low: np.float32,
    high: np.float32,
    x: Floats,
    w: Floats,
    first: Floats,
    second: Floats,
    sums: Floats,
) -> None:
    """`_sums` for the levels of a table."""
    sums[:] = ZERO
    for start in range(0, x.shape[0], LEVEL_STEP * LANES):
        values, weights = x[start : start + LEVEL_STEP * LANES], w[start : start + LEVEL_STEP * LANES]
        for lane in range(LANES):
            c, s = sums[lane], sums[LANES + lane]
            c2, s2 = sums[2 * LANES + lane], sums[3 * LANES + lane]
            factor, factor2 = first[lane], second[lane]
            for k in range(LEVEL_STEP):
                value, weight = values[k * LANES + lane], weights[k * LANES + lane]
                q, q2 = level(nearest, value * factor, low, high), level(nearest, value * factor2, low, high)
                wq, wq2 = weight * q, weight * q2
                c += wq * value
                s += wq * q
                c2 += wq2 * value
                s2 += wq2 * q2
            sums[lane], sums[LANES + lane] = c, s
            sums[2 * LANES + lane], sums[3 * LANES + lane] = c2, s2


@jit
def _keep_better(sums: Floats, a: np.float32, b: np.float32, before: Floats, after: Floats) -> None:
    """`after` is `before` where neither candidate has a larger gain, else the better one, the first of two alike."""
    for lane in range(LANES):
        cross, squares = sums[lane], sums[LANES + lane]
        cross2, squares2 = sums[2 * LANES + lane], sums[3 * LANES + lane]
        gain, scale, mass, g = before[lane], before[LANES + lane], before[2 * LANES + lane], before[3 * LANES + lane]
        fitted, fitted2 = cross * reciprocal(squares), cross2 * reciprocal(squares2)
        gained, gained2 = cross * fitted, cross2 * fitted2
        better = gained > gain
        gain = max(gain, gained)
        better2 = gained2 > gain
        scale = fitted if better else scale
        mass = squares if better else mass
        g = a if better else g
        after[lane] = max(gain, gained2)
        scale = fitted2 if better2 else scale
        after[LANES + lane] = scale
        mass = squares2 if better2 else mass
        after[2 * LANES + lane] = mass
        g = b if better2 else g
        after[3 * LANES + lane] = g


@jit
def exact_error(
    nearest: Floats,
    low: np.float32,
    high: np.float32,
    tile: Floats,
    weights: Floats,
    step: Floats,
    inverse: Floats,
    error: Floats,
) -> None:
    """error[lane] = sum w (step * q - x)^2 for q = the level nearest to x * inverse, where inverse = reciprocal(step)."""
    x, w = tile.reshape(-1), weights.reshape(-1)
    linear = nearest.shape[0] == 0
    error[:] = ZERO
    for start in range(0, x.shape[0], LEVEL_STEP * LANES):
        values, masses = x[start : start + LEVEL_STEP * LANES], w[start : start + LEVEL_STEP * LANES]
        if linear:
            for lane in range(LANES):
                e, size, factor = error[lane], step[lane], inverse[lane]
                for k in range(LEVEL_STEP):
                    value = values[k * LANES + lane]
                    off = size * code(value * factor, low, high) - value
                    e += masses[k * LANES + lane] * off * off
                error[lane] = e
        else:
            for lane in range(LANES):
                e, size, factor = error[lane], step[lane], inverse[lane]
                for k in range(LEVEL_STEP):
                    value = values[k * LANES + lane]
                    off = size * level(nearest, value * factor, low, high) - value
                    e += masses[k * LANES + lane] * off * off
                error[lane] = e
