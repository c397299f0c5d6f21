"""Q4_K: 256 weights are 8 blocks of 32, each with a 6-bit scale and a 6-bit min under two fp16 numbers.

    super-block = | d: fp16 | dmin: fp16 | 12 bytes: scales and mins (scales6.py) | 128 bytes: codes |
                  144 bytes for 256 weights, 4.5 bits each
    codes: 4 runs of 32 bytes; byte i of run r holds block 2r's code i (low nibble) and block 2r + 1's (high nibble)
    weight[j, i] = (d * scale[j]) * code[j, i] - (dmin * min[j])

The search minimises sum(w * (decoded - x)^2) under ggml's weights, with importance made a little more even:

    w = rms of the block + |x|                                                 without importance
    w = importance * sqrt(2 mean(x^2) + x^2) + BLEND * sqrt(2 mean(x^2))       with; the mean is the super-block's

    1. each block alone: GRID x EDGES ranges of codes -> the scale and low end (<= 0) that fit best in closed form
    2. d = fp16(largest scale / 63), dmin = fp16(largest -low / 63); per block the rounded scale and its neighbours, each
       with the min that fits its codes, are tried exactly
    3. d and dmin are fitted to all codes of the super-block, step 2 again under them; kept where the error is less

Layout: ggml, block_q4_K. The weights are those of ggml's quantize_q4_K; the search is smelt's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dtypes import Q4_K as DTYPE
from ..scheme import Packed, Rows
from . import scales6
from .checks import SEARCH_LIMIT, refuse_scales, refuse_values, relative_importance
from .search import ONE, TINY, ZERO, Floats, bytes_half, codes, half_bytes, half_scale, half_scale_or, reciprocal, total

__all__ = ["BLEND", "DTYPE", "EDGES", "GRID", "NEIGHBOURS", "decode", "encode"]

BLOCK, BLOCKS, TOP, SCALE_TOP = 32, 8, 15, np.float32(63)

# Measured on normal, Laplace, Student t, uniform and trained weights: 6 x 3 candidates leave 2 to 4 % less error than
# ggml's 21 or 37, which all start at the block's minimum; 9 x 3 leave 0.3 % less than that.
GRID = tuple(np.float32(g) for g in (13.1, 13.7, 14.3, 14.9, 15.5, 16.1))  # codes that the block's range spans
EDGES = tuple(np.float32(e) for e in (-0.3, 0.0, 0.3))  # where code 0 lies, in steps above the block's minimum
NEIGHBOURS = tuple(np.float32(k) for k in (-1, 0, 1))
BLEND = np.float32(0.2)  # trades 1 % of the weighted error for 5 % of the plain one, which without it exceeds ggml's


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 144] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_values(rows, SEARCH_LIMIT)
    x = rows.reshape(-1, BLOCKS, BLOCK)
    if importance is None:
        weights = _plain_weights(x)
    else:
        weights = _importance_weights(rows, relative_importance(importance, columns))
    found = _search(x, weights, columns)
    q = found.q.astype(np.uint8)
    packed_scales = scales6.pack(found.scales.astype(np.uint8), found.mins.astype(np.uint8))
    nibbles = (q[:, 0::2] | q[:, 1::2] << np.uint8(4)).reshape(-1, DTYPE.block // 2)
    packed = np.concatenate([half_bytes(found.d), half_bytes(found.dmin), packed_scales, nibbles], axis=1)
    return packed.reshape(n, width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 144] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    scales, mins = scales6.unpack(blocks[:, 4:16])
    step = bytes_half(blocks[:, :2])[:, None] * scales.astype(np.float32)
    low = bytes_half(blocks[:, 2:4])[:, None] * mins.astype(np.float32)
    runs = blocks[:, 16:].reshape(-1, BLOCKS // 2, BLOCK)
    q = np.stack([runs & np.uint8(15), runs >> np.uint8(4)], axis=2).reshape(-1, BLOCKS, BLOCK).astype(np.float32)
    weights: Rows = step[..., None] * q - low[..., None]
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)


def _plain_weights(x: Floats) -> Floats:
    rms = np.sqrt(total(x * x) / np.float32(BLOCK))
    weights: Floats = rms[..., None] + np.abs(x)
    return weights


def _importance_weights(rows: Rows, importance: Rows) -> Floats:
    squares = (rows * rows).reshape(len(rows), rows.shape[1] // DTYPE.block, BLOCKS, BLOCK)
    twice_mean = (total(total(squares)) / np.float32(DTYPE.block // 2))[..., None, None]
    weights: Floats = importance.reshape(-1, BLOCKS, BLOCK) * np.sqrt(twice_mean + squares) + BLEND * np.sqrt(
        twice_mean
    )
    return weights.reshape(-1, BLOCKS, BLOCK)


@dataclass(frozen=True)
class _Sums:
    """What of a block stays the same for all candidates. [super-blocks, 8], `wx` and `wc` [super-blocks, 8, 32]."""

    w: Floats  # sum w
    inverse: Floats  # 1 / sum w
    mean: Floats  # weighted mean of x
    centred: Floats  # w * (x - mean)


@dataclass(frozen=True)
class _Found:
    """One solution: float32 throughout, `d` and `dmin` on fp16 numbers."""

    error: Floats  # [super-blocks]
    d: Floats
    dmin: Floats
    scales: Floats  # [super-blocks, 8]
    mins: Floats
    q: Floats  # [super-blocks, 8, 32]


def _search(x: Floats, weights: Floats, columns: int) -> _Found:
    w = total(weights)
    inverse = reciprocal(w)
    mean = total(weights * x) * inverse
    sums = _Sums(w, inverse, mean, weights * (x - mean[..., None]))
    scale, low = _fit_blocks(x, weights, sums)
    d, dmin = scale.max(axis=1) / SCALE_TOP, (-low).max(axis=1) / SCALE_TOP
    refuse_scales(np.maximum(d, dmin), columns, DTYPE.block)
    first = _round_scales(x, weights, sums, scale, low, half_scale(d), half_scale(dmin))
    second = _round_scales(x, weights, sums, scale, low, *_fit_super(weights, sums, first))
    return _less(second, first)


def _fit_blocks(x: Floats, weights: Floats, sums: _Sums) -> tuple[Floats, Floats]:
    """Step 1. The weighted least squares of x = low + scale * q, on x centred so that fp32 does not cancel."""
    bottom = np.minimum(x.min(axis=-1), ZERO)
    span = x.max(axis=-1) - bottom
    inverse_span = reciprocal(span)
    # Gains count from all codes 0 at the weighted mean; where that is above 0, low is 0 and all of it is still to gain.
    positive = np.maximum(sums.mean, ZERO)
    best, scale, low = -(positive * positive * sums.w), np.zeros_like(span), np.minimum(sums.mean, ZERO)
    for g in GRID:
        inverse = g * inverse_span
        step = span * (ONE / g)
        for edge in EDGES:
            start = bottom + edge * step
            q = codes((x - start[..., None]) * inverse[..., None], 0, TOP)
            wq = weights * q
            sum_q, sum_qq, cross = total(wq), total(wq * q), total(sums.centred * q)
            mean_q = sum_q * sums.inverse
            fitted = cross * reciprocal(sum_qq - sum_q * mean_q)
            fitted_low = sums.mean - fitted * mean_q
            gain = cross * fitted
            # A low end above 0 cannot be stored: fit through 0 instead, its gain against the same weighted mean.
            through = cross + sums.mean * sum_q
            fitted_through = through * reciprocal(sum_qq)
            above = fitted_low > ZERO
            gain = np.where(above, through * fitted_through - sums.mean * sums.mean * sums.w, gain)
            better = gain > best
            best = np.where(better, gain, best)
            scale = np.where(better, np.where(above, fitted_through, fitted), scale)
            low = np.where(better, np.where(above, ZERO, fitted_low), low)
    return scale, low


def _round_scales(
    x: Floats, weights: Floats, sums: _Sums, scale: Floats, low: Floats, d: Floats, dmin: Floats
) -> _Found:
    """Step 2: the 6-bit scales and mins under `d` and `dmin`, by the exact error of each neighbour."""
    inverse_dmin = reciprocal(dmin)[:, None]
    nearest = codes(scale * reciprocal(d)[:, None], 0, 63)
    best = np.full_like(scale, np.inf)
    scales, mins, q = np.zeros_like(scale), np.zeros_like(scale), np.zeros_like(x)
    for k in NEIGHBOURS:
        tried = np.minimum(np.maximum(nearest + k, ZERO), SCALE_TOP)
        step = d[:, None] * tried
        inverse = reciprocal(step)[..., None]
        draft = codes((x - low[..., None]) * inverse, 0, TOP)
        mean_q = total(weights * draft) * sums.inverse
        tried_min = codes((step * mean_q - sums.mean) * inverse_dmin, 0, 63)
        under = (dmin[:, None] * tried_min)[..., None]
        tried_q = codes((x + under) * inverse, 0, TOP)
        off = (step[..., None] * tried_q - under) - x
        error = total(weights * off * off)
        better = error < best
        best = np.where(better, error, best)
        scales, mins = np.where(better, tried, scales), np.where(better, tried_min, mins)
        q = np.where(better[..., None], tried_q, q)
    return _Found(total(best), d, dmin, scales, mins, q)


def _fit_super(weights: Floats, sums: _Sums, found: _Found) -> tuple[Floats, Floats]:
    """Step 3: fp16 d and dmin that fit best to given codes, scales and mins; as they were where nothing is to fit."""
    wq = weights * found.q
    sum_q, sum_qq = total(wq), total(wq * found.q)
    cross = total(sums.centred * found.q) + sums.mean * sum_q  # sum w x q
    a, b = found.scales, found.mins
    aa, ab, bb = total(a * a * sum_qq), total(a * b * sum_q), total(b * b * sums.w)
    ax, bx = total(a * cross), total(b * (sums.mean * sums.w))
    determinant = aa * bb - ab * ab
    both = determinant > np.float32(1e-5) * (aa * bb)
    inverse = ONE / np.where(both, determinant, ONE)
    d = np.where(both, (ax * bb - bx * ab) * inverse, ax * reciprocal(aa))
    dmin = np.where(both, (ax * ab - bx * aa) * inverse, found.dmin)
    sound = (d > TINY) & (dmin >= ZERO)
    return half_scale_or(np.where(sound, d, found.d), found.d), half_scale_or(
        np.where(sound, dmin, found.dmin), found.dmin
    )


def _less(a: _Found, b: _Found) -> _Found:
    """The solution of less error, `b` where they are equal."""
    one = a.error < b.error
    eight, all_codes = one[:, None], one[:, None, None]
    return _Found(
        np.where(one, a.error, b.error),
        np.where(one, a.d, b.d),
        np.where(one, a.dmin, b.dmin),
        np.where(eight, a.scales, b.scales),
        np.where(eight, a.mins, b.mins),
        np.where(all_codes, a.q, b.q),
    )
