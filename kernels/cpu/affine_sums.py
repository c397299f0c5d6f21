"""The sums over a tile that the searches with a scale and a min make of each candidate: 64 blocks at once, each in a lane."""

from __future__ import annotations

import numpy as np

from .jit import jit
from .tile import STEP, ZERO, Floats, code, height, reciprocal

LANES = 64  # constant, so that LLVM vectorises loops over lanes without a remainder


@jit
def centre(x: Floats, w: Floats, fixed: Floats, centred: Floats) -> None:
    """fixed = sum w, its inverse, sum w x / sum w; centred = w (x - mean)."""
    fixed[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            sum_w, sum_wx = fixed[0, lane], fixed[2, lane]
            for k in range(STEP):
                sum_w += w[i + k, lane]
                sum_wx += w[i + k, lane] * x[i + k, lane]
            fixed[0, lane], fixed[2, lane] = sum_w, sum_wx
    for lane in range(LANES):
        fixed[1, lane] = reciprocal(fixed[0, lane])
        fixed[2, lane] = fixed[2, lane] * fixed[1, lane]
    for i in range(height(x)):
        for lane in range(LANES):
            centred[i, lane] = w[i, lane] * (x[i, lane] - fixed[2, lane])


@jit
def code_sums(
    x: Floats, w: Floats, centred: Floats, start: Floats, inverse: Floats, top: np.float32, sums: Floats
) -> None:
    """For q = code((x - start) * inverse): sums = sum w q, sum w q q, sum w (x - mean) q."""
    sums[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            sum_q, sum_qq, cross = sums[0, lane], sums[1, lane], sums[2, lane]
            zero_at, factor = start[lane], inverse[lane]
            for k in range(STEP):
                q = code((x[i + k, lane] - zero_at) * factor, ZERO, top)
                wq = w[i + k, lane] * q
                sum_q += wq
                sum_qq += wq * q
                cross += centred[i + k, lane] * q
            sums[0, lane], sums[1, lane], sums[2, lane] = sum_q, sum_qq, cross


@jit
def code_mass(x: Floats, w: Floats, start: Floats, inverse: Floats, top: np.float32, mass: Floats) -> None:
    """mass[lane] = sum w q for q = code((x - start) * inverse)."""
    mass[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            sum_q, zero_at, factor = mass[lane], start[lane], inverse[lane]
            for k in range(STEP):
                sum_q += w[i + k, lane] * code((x[i + k, lane] - zero_at) * factor, ZERO, top)
            mass[lane] = sum_q


@jit
def exact_error(
    x: Floats, w: Floats, step: Floats, inverse: Floats, under: Floats, top: np.float32, error: Floats
) -> None:
    """error[lane] = sum w (step * q - under - x)^2 for q = code((x + under) * inverse)."""
    error[:] = ZERO
    for i in range(0, height(x), STEP):
        for lane in range(LANES):
            e, size, factor, offset = error[lane], step[lane], inverse[lane], under[lane]
            for k in range(STEP):
                value = x[i + k, lane]
                off = (size * code((value + offset) * factor, ZERO, top) - offset) - value
                e += w[i + k, lane] * off * off
            error[lane] = e
