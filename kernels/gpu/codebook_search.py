"""The search of the IQ1, IQ2 and IQ3 types, one block a thread: `reference/codebook.py`, operation by operation.

A block is a tuple of vectors, as in search.py; the J neighbours of a super-block lie in neighbouring threads. Points are not
kept during the search: they follow from the scales, and are found once more at the end.

    candidates   the reference's nearest points of a cell, a byte a number, raised by 1 where some are negative; int32 words
    indexes      what each candidate is called in the file, int16; candidate c of a cell lies at cell * available + c in both
    scanned, nearest, wide   how many candidates steps 1, 2 and 3 look at; no constants, or LLVM unrolls loops that fill the
                 registers and take minutes to compile
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from ..reference import codebook as reference
from ..reference import grids
from .blocks import flag_blocks, half_bits, is_half_infinity
from .search import codes, extremes, half, half_or, load_block, out_of_range, pick, reciprocal
from .super_block import least_of, sum_in_order

NORMAL = tl.constexpr(float(reference.NORMAL))
TRIED = tl.constexpr(len(reference.TRIED))


class Codebook(NamedTuple):
    """`reference.Codebook` as Python numbers, which is what a kernel can take as constants."""

    width: int  # of a block
    log_width: int
    blocks: int
    log_blocks: int
    group: int
    levels: int
    unit: float
    even: bool
    signed: bool
    slope: float
    targets: tuple[float, ...]
    variance: float
    blend: float
    plain: float
    available: int
    top_scale: float
    shifts: tuple[float, ...]
    offsets: tuple[float, ...]  # one for each shift
    added: tuple[float, ...]  # to the candidates' bytes, for each shift
    by_group: bool  # whether each group takes its own shift, or each block
    points: int
    restored: float
    most: float


def constants(given: reference.Codebook) -> tl.constexpr:
    """For the parameter FORMAT of the functions here."""
    points, group = grids.points(given.name).shape
    blocks = reference.WIDTH // given.block
    lowest = grids.LEVELS[given.name][0]
    return tl.constexpr(
        Codebook(
            width=given.block,
            log_width=given.block.bit_length() - 1,
            blocks=blocks,
            log_blocks=blocks.bit_length() - 1,
            group=group,
            levels=len(grids.LEVELS[given.name]),
            unit=float(given.unit),
            even=given.even,
            signed=lowest < 0,
            slope=float(given.slope),
            targets=tuple(float(target) for target in given.targets),
            variance=float(given.variance),
            blend=float(given.blend),
            plain=float(given.plain),
            available=given.wide,
            top_scale=float(given.top_scale),
            shifts=tuple(float(shift) for shift in given.shifts),
            offsets=tuple(float(given.offset + shift) for shift in given.shifts),
            added=tuple(float(shift) - max(0, -lowest) for shift in given.shifts),
            by_group=given.span == group,
            points=points,
            restored=float(given.restored),
            most=float(given.most),
        )
    )


@cache
def tables(book: reference.Codebook, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`candidates` int32[cells * available * group / 4] and `indexes` int16[cells * available] on `device`."""
    indexes, values = reference.neighbours(book.name, book.wide)
    raised = values.transpose(0, 2, 1) + max(0, -grids.LEVELS[book.name][0])
    candidates = np.ascontiguousarray(raised.astype(np.uint8)).view("<i4").reshape(-1)
    return torch.from_numpy(candidates).to(device), torch.from_numpy(indexes.view(np.int16).reshape(-1)).to(device)


def parameters(word: str) -> dict[str, str]:
    """`Launch.types` of an encoder without importance, whose blocks are seen as integers behind a `word` pointer."""
    known = {"scanned": "i32", "nearest": "i32", "wide": "i32", "candidates": "*i32", "indexes": "*i16"}
    return {"rows": "rows", "packed": word, "flag": "*i64", "n_blocks": "i64", **known}


@triton.jit
def moments(rows, block, inside, FOURTH: tl.constexpr, FORMAT: tl.constexpr):
    """The mean of x^2 over the super-block and, if asked for, the sum of x^4 over that mean.

    The order of the elements is that of the sum: every thread reads all of its super-block, mostly from cache. Call it before
    anything else is loaded, for its own block fills many registers.
    """
    J: tl.constexpr = FORMAT.value.blocks
    W: tl.constexpr = FORMAT.value.width
    LOG: tl.constexpr = FORMAT.value.log_width
    start = rows + block // J * 256
    total = tl.zeros(block.shape, tl.float32)
    for j in range(0, J):
        x = load_block(start + j * W, inside, W, LOG)
        for i in tl.static_range(0, W):
            total += x[i] * x[i]
    mean = total * 0.00390625
    fourth = tl.zeros(block.shape, tl.float32)
    if FOURTH:
        inverse = reciprocal(mean)
        for j in range(0, J):
            x = load_block(start + j * W, inside, W, LOG)
            for i in tl.static_range(0, W):
                square = x[i] * x[i]
                fourth += square * (square * inverse)
    return mean, fourth


@triton.jit
def plain_weights(x, mean, FORMAT: tl.constexpr):
    """Without importance."""
    even = FORMAT.value.plain * mean
    weight = ()
    for i in tl.static_range(0, len(x)):
        weight += (x[i] * x[i] + even,)
    return weight


@triton.jit
def importance_weights(x, given, mean, fourth, FORMAT: tl.constexpr):
    """With importance relative to its mean."""
    variance = FORMAT.value.variance * mean
    even = FORMAT.value.blend * tl.sqrt_rn(tl.maximum(mean, tl.div_rn(fourth, NORMAL)))
    weight = ()
    for i in tl.static_range(0, len(x)):
        weight += (given[i] * tl.sqrt_rn(variance + x[i] * x[i]) + even,)
    return weight


@triton.jit
def split_signs(x, weight, FORMAT: tl.constexpr):
    """Step 0 -> (a, and the sign byte of each 8 weights); x itself and no signs where the points have their own."""
    a = ()
    signs = ()
    if FORMAT.value.signed:
        a = x
    else:
        for start in tl.static_range(0, len(x), 8):
            sign = tl.zeros(x[0].shape, tl.int32)
            wrong = sign
            for i in tl.static_range(0, 8):
                sign |= (x[start + i] < 0).to(tl.int32) << i
            if FORMAT.value.even:
                wrong = tl.where(_odd(sign), 1 << _least_loss(x, weight, start), 0)
            for i in tl.static_range(0, 8):
                size = tl.abs(x[start + i])
                a += (tl.where((wrong >> i) & 1 == 1, -size, size),)
            signs += (sign ^ wrong,)
    return a, signs


@triton.jit
def _odd(bits):
    """Whether an odd number of the lowest 8 bits is set."""
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    return ((bits ^ (bits >> 1)) & 1) == 1


@triton.jit
def _least_loss(x, weight, start: tl.constexpr):
    """Which of 8 weights from `start` on has the least w * x^2, the first of equals."""
    least = weight[start] * tl.abs(x[start]) * tl.abs(x[start])
    found = tl.zeros(least.shape, tl.int32)
    for i in tl.static_range(1, 8):
        loss = weight[start + i] * tl.abs(x[start + i]) * tl.abs(x[start + i])
        found = tl.where(loss < least, i, found)
        least = tl.minimum(loss, least)
    return found


@triton.jit
def search(x, a, weight, scanned, nearest, candidates, flag, block, n_blocks, FORMAT: tl.constexpr):
    """Steps 1 and 2 -> d fitted to their points, and each block's integer scale; J neighbours of `block` share d."""
    J: tl.constexpr = FORMAT.value.blocks
    LOG: tl.constexpr = FORMAT.value.log_blocks
    SPAN: tl.constexpr = (2 * FORMAT.value.top_scale + 1) * FORMAT.value.unit
    low, high, finite = extremes(x)
    step = _fit_blocks(a, weight, tl.maximum(high, -low), scanned, candidates, FORMAT)
    d = half(tl.div_rn(-least_of(-step, LOG), SPAN))
    inside = block < n_blocks * J
    overflow = is_half_infinity(half_bits(d))
    flag_blocks(flag, block // J, inside & ~finite, inside & out_of_range(low, high), inside & overflow)

    value = 0.5 * (step * reciprocal(d * FORMAT.value.unit) - 1.0)
    below = value.to(tl.int32).to(tl.float32)
    below = tl.where(below > value, below - 1.0, below)
    return _round_scales(a, weight, below, d, nearest, candidates, FORMAT)


@triton.jit
def _fit_blocks(a, weight, largest, scanned, candidates, FORMAT: tl.constexpr):
    """Step 1 -> the step of each block."""
    N_TARGETS: tl.constexpr = len(FORMAT.value.targets)
    inverse = reciprocal(largest)
    best = tl.zeros_like(largest)
    step = best
    for t in tl.range(0, N_TARGETS, disable_licm=True):
        target = pick(FORMAT.value.targets, N_TARGETS, t)
        cross, square, _ = match(a, weight, tl.div_rn(largest, target), target * inverse, scanned, candidates, FORMAT)
        fitted = cross * reciprocal(square)
        gain = cross * fitted
        better = gain > best
        best = tl.where(better, gain, best)
        step = tl.where(better, fitted, step)
    return step


@triton.jit
def _round_scales(a, weight, below, d, count, candidates, FORMAT: tl.constexpr):
    """Step 2 -> (the d that would suit their points better, integer scales)."""
    unit = d * FORMAT.value.unit
    least = tl.full(d.shape, float("inf"), tl.float32)
    scales = tl.zeros_like(d)
    best_cross, best_square = scales, scales
    for k in tl.range(0, TRIED, disable_licm=True):
        scale = tl.minimum(tl.maximum(below + k, 0.0), FORMAT.value.top_scale)
        step = unit * (2.0 * scale + 1.0)
        cross, square, _ = match(a, weight, step, reciprocal(step), count, candidates, FORMAT)
        error = step * (step * square - (cross + cross))
        better = error < least
        least = tl.where(better, error, least)
        scales = tl.where(better, scale, scales)
        best_cross, best_square = tl.where(better, cross, best_cross), tl.where(better, square, best_square)
    cross, square = _sum_super(scales, best_cross, best_square, FORMAT)
    fitted = cross * reciprocal(square)
    return half_or(tl.where(fitted > 0, fitted, d), d), scales


@triton.jit
def _sum_super(scales, cross, square, FORMAT: tl.constexpr):
    """Of blocks -> of super-blocks, in units of d."""
    factor = (2.0 * scales + 1.0) * FORMAT.value.unit
    LOG: tl.constexpr = FORMAT.value.log_blocks
    return sum_in_order(factor * cross, LOG), sum_in_order(factor * factor * square, LOG)


@triton.jit
def points(a, weight, d, scales, wide, candidates, indexes, FORMAT: tl.constexpr):
    """Steps 3 and 4 -> d as it is stored, and the index of each group's point; `FORMAT.points` more with the second shift."""
    step = d * FORMAT.value.unit * (2.0 * scales + 1.0)
    cross, square, places = match(a, weight, step, reciprocal(step), wide, candidates, FORMAT)
    found = ()
    for g in tl.static_range(0, len(places)):
        index = tl.load(indexes + (places[g] & 0xFFFFFF)).to(tl.int32)
        found += (index + (places[g] >> 24) * FORMAT.value.points,)
    cross, square = _sum_super(scales, cross, square, FORMAT)
    whole = tl.zeros_like(d)
    for i in tl.static_range(0, len(a)):
        whole += weight[i] * a[i] * a[i]
    whole = sum_in_order(whole, FORMAT.value.log_blocks)
    fitted = cross * reciprocal(square)
    missing = tl.maximum(whole * reciprocal(cross) - fitted, 0.0)
    more = fitted + tl.minimum(FORMAT.value.restored * missing, FORMAT.value.most * fitted)
    return half_or(tl.where(fitted > 0, more, d), d), found


@triton.jit
def match(a, weight, step, inverse, count, candidates, FORMAT: tl.constexpr):
    """-> (cross, squares, where each group's point lies among the candidates, and the number of its shift above 24 bits)"""
    N_SHIFTS: tl.constexpr = len(FORMAT.value.shifts)
    if N_SHIFTS == 1:
        cross, square, _, places = _match_shifted(
            a, weight, step, inverse, FORMAT.value.offsets[0], FORMAT.value.added[0], count, candidates, FORMAT
        )
    else:
        N_PLACES: tl.constexpr = FORMAT.value.width // FORMAT.value.group
        N_RUNS: tl.constexpr = N_PLACES if FORMAT.value.by_group else 1
        cross, places = (), ()
        for _ in tl.static_range(0, N_RUNS):
            cross += (tl.zeros_like(step),)
        for _ in tl.static_range(0, N_PLACES):
            places += (tl.zeros(step.shape, tl.int32),)
        square, error = cross, cross
        for k in tl.range(0, N_SHIFTS, disable_licm=True):
            offset, added = pick(FORMAT.value.offsets, N_SHIFTS, k), pick(FORMAT.value.added, N_SHIFTS, k)
            tried_cross, tried_square, tried_error, tried = _match_shifted(
                a, weight, step, inverse, offset, added, count, candidates, FORMAT
            )
            better, new_cross, new_square, new_error, new_places = (), (), (), (), ()
            for r in tl.static_range(0, N_RUNS):
                better += ((tried_error[r] < error[r]) | (k == 0),)
                new_cross += (tl.where(better[r], tried_cross[r], cross[r]),)
                new_square += (tl.where(better[r], tried_square[r], square[r]),)
                new_error += (tl.where(better[r], tried_error[r], error[r]),)
            for g in tl.static_range(0, N_PLACES):
                new_places += (tl.where(better[g * N_RUNS // N_PLACES], tried[g] | (k << 24), places[g]),)
            cross, square, error, places = new_cross, new_square, new_error, new_places
    return _total(cross), _total(square), places


@triton.jit
def _total(parts):
    """In index order."""
    total = tl.zeros_like(parts[0])
    for g in tl.static_range(0, len(parts)):
        total += parts[g]
    return total


@triton.jit
def _match_shifted(a, weight, step, inverse, offset, added, count, candidates, FORMAT: tl.constexpr):
    """With one shift -> cross, squares and error of each run of groups that takes one shift, the place of each group."""
    GROUP: tl.constexpr = FORMAT.value.group
    factor = inverse * FORMAT.value.slope
    cross, square, error, places = (), (), (), ()
    for start in tl.static_range(0, len(a), GROUP):
        c, s, e, p = _match_group(a, weight, start, step, factor, offset, added, count, candidates, FORMAT)
        cross += (c,)
        square += (s,)
        error += (e,)
        places += (p,)
    if not FORMAT.value.by_group:
        cross, square, error = (_total(cross),), (_total(square),), (_total(error),)
    return cross, square, error, places


@triton.jit
def _match_group(
    a,
    weight,
    start: tl.constexpr,
    step,
    factor,
    offset,
    added,
    count,
    candidates,
    FORMAT: tl.constexpr,
):
    """-> (cross, squares, error, place) of the best of the first `count` candidates for the group from `start` on."""
    GROUP: tl.constexpr = FORMAT.value.group
    N_SHIFTS: tl.constexpr = len(FORMAT.value.shifts)
    cell = tl.zeros_like(step)
    wa = ()
    for i in tl.static_range(0, GROUP):
        scaled = a[start + i] * factor - offset
        cell += codes(scaled, 0, FORMAT.value.levels - 1) * FORMAT.value.levels**i
        wa += (weight[start + i] * a[start + i],)
    first = cell.to(tl.int32) * FORMAT.value.available
    two, twice = step * step, step + step
    least, cross, square = tl.zeros_like(step), tl.zeros_like(step), tl.zeros_like(step)
    place = first
    for c in range(0, count):
        at = candidates + (first + c) * (GROUP // 4)
        tried_cross, tried_square = tl.zeros_like(step), tl.zeros_like(step)
        for i in tl.static_range(0, GROUP):
            if i % 4 == 0:
                word = tl.load(at + i // 4)
            # 2^23 + byte, whose last bits are the byte's: cheaper than a conversion
            value = (((word >> (8 * (i % 4))) & 255) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
            if N_SHIFTS > 1:
                value += added
            tried_cross += wa[i] * value
            tried_square += weight[start + i] * (value * value)
        error = two * tried_square - twice * tried_cross
        better = (error < least) | (c == 0)
        least = tl.where(better, error, least)
        cross, square = tl.where(better, tried_cross, cross), tl.where(better, tried_square, square)
        place = tl.where(better, first + c, place)
    return cross, square, least, place
