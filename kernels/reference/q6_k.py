"""Q6_K: 256 weights are 16 blocks of 16, each with a signed 8-bit scale under one fp16 number.

    super-block = | 128 bytes: low 4 bits | 64 bytes: high 2 bits | 16 x int8 scales | d: fp16 |
                  210 bytes for 256 weights, 6.5625 bits each
    for each half h of 128 weights, l = 0..31, the codes c[k] = code[128 h + 32 k + l]:
      low  byte 64 h + l       = c[0] & 15 | (c[2] & 15) << 4        low byte 64 h + 32 + l = c[1] & 15 | (c[3] & 15) << 4
      high byte 32 h + l       = c[0] >> 4 | (c[1] >> 4) << 2 | (c[2] >> 4) << 4 | (c[3] >> 4) << 6
    weight[j, i] = (d * scale[j]) * (code[j, i] - 32)

The search minimises sum(w * (decoded - x)^2) under ggml's weights, made a little more even:

    w = x^2 + BLEND * mean(x^2)      without importance; the mean is the super-block's
    w = importance + BLEND           with importance, whose mean is 1

    1. each block alone: for each grid point g, codes = round(x * g / extreme) -> fitted scale and gain (search.py)
    2. d = fp16(the block scale of largest magnitude / -128); per block the rounded scale and its neighbours are tried
       exactly
    3. d is fitted to all codes of the super-block, step 2 once more under it; kept where the error is less

Layout: ggml, block_q6_K. The weights are those of ggml's quantize_q6_K; the search is smelt's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...dtypes import Q6_K as DTYPE
from ..scheme import Packed, Rows
from .checks import SEARCH_LIMIT, refuse_scales, refuse_values, relative_importance
from .search import (
    ZERO,
    Floats,
    bytes_half,
    codes,
    half_bytes,
    half_scale,
    half_scale_or,
    reciprocal,
    signed_extreme,
    total,
)

__all__ = ["BLEND", "DTYPE", "GRID", "NEIGHBOURS", "TOP", "decode", "encode"]

BLOCK, BLOCKS = 16, 16

# Where the extreme weight lands: near code -32 with one sign of the scale, near 31 with the other.
GRID = tuple(np.float32(g) for g in (-32.8, -32.4, -32.0, -31.6, -31.2, -30.8, 30.4, 30.9, 31.4))
TOP = np.float32(-128)
NEIGHBOURS = tuple(np.float32(k) for k in (-1, 0, 1))
BLEND = np.float32(0.2)


def encode(rows: Rows, importance: Rows | None = None) -> Packed:
    """[n, columns] float32, [columns] float32 or None -> [n, columns / 256 * 210] uint8.

    NonFiniteError, ScaleOverflowError; InputError for a bad importance.
    """
    n, columns = rows.shape
    width = DTYPE.row_nbytes(columns)
    refuse_values(rows, SEARCH_LIMIT)
    x = rows.reshape(-1, BLOCKS, BLOCK)
    if importance is None:
        squares = x * x
        weights = squares + (BLEND * (total(total(squares)) / np.float32(DTYPE.block)))[:, None, None]
    else:
        evened = relative_importance(importance, columns) + BLEND
        weights = np.broadcast_to(evened, rows.shape).reshape(x.shape)
    found = _search(x, weights, columns)
    low, high = _split((found.q + np.float32(32)).astype(np.uint8))
    scales = found.scales.astype(np.int8).view(np.uint8)
    return np.concatenate([low, high, scales, half_bytes(found.d)], axis=1).reshape(n, width)


def decode(packed: Packed) -> Rows:
    """[n, columns / 256 * 210] uint8 -> [n, columns] float32."""
    blocks = packed.reshape(-1, DTYPE.nbytes)
    low = blocks[:, :128].reshape(-1, 2, 1, 64) >> np.array([0, 4], np.uint8).reshape(2, 1) & 15
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    q = (low.reshape(-1, 2, 4, 32) | high << np.uint8(4)).reshape(-1, BLOCKS, BLOCK).astype(np.float32) - np.float32(32)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    step = bytes_half(blocks[:, 208:])[:, None] * scales
    weights: Rows = step[..., None] * q
    return weights.reshape(len(packed), packed.shape[1] // DTYPE.nbytes * DTYPE.block)


def _split(q: Packed) -> tuple[Packed, Packed]:
    """Codes 0..63, [n, 16, 16] -> their low 4 bits [n, 128] and high 2 bits [n, 64]."""
    c = q.reshape(-1, 2, 4, 32)
    four, fifteen = np.uint8(4), np.uint8(15)
    low = np.stack([c[:, :, 0] & fifteen | c[:, :, 2] << four, c[:, :, 1] & fifteen | c[:, :, 3] << four], axis=2)
    top = c >> four
    high: Packed = top[:, :, 0] | top[:, :, 1] << np.uint8(2) | top[:, :, 2] << four | top[:, :, 3] << np.uint8(6)
    return low.reshape(-1, 128), high.reshape(-1, 64)


@dataclass(frozen=True)
class _Found:
    """One solution: float32 throughout, `d` on an fp16 number."""

    error: Floats  # [super-blocks]
    d: Floats
    scales: Floats  # [super-blocks, 16]
    q: Floats  # [super-blocks, 16, 16]


def _search(x: Floats, weights: Floats, columns: int) -> _Found:
    scale = _fit_blocks(x, weights)
    largest = signed_extreme(scale)
    d = largest / TOP
    refuse_scales(d, columns, DTYPE.block)
    found = _round_scales(x, weights, codes(scale * reciprocal(half_scale(d))[:, None], -128, 127), half_scale(d))
    again = _round_scales(x, weights, found.scales, _fit_super(x, weights, found))
    return _less(again, found)


def _fit_blocks(x: Floats, weights: Floats) -> Floats:
    """Step 1: [super-blocks, 16] scales, each with its sign."""
    inverse = reciprocal(signed_extreme(x))
    best, scale = np.zeros_like(inverse), np.zeros_like(inverse)
    for g in GRID:
        q = codes(x * (g * inverse)[..., None], -32, 31)
        wq = weights * q
        cross = total(wq * x)
        fitted = cross * reciprocal(total(wq * q))
        gain = cross * fitted
        better = gain > best
        best, scale = np.where(better, gain, best), np.where(better, fitted, scale)
    return scale


def _round_scales(x: Floats, weights: Floats, nearest: Floats, d: Floats) -> _Found:
    """Step 2: the int8 scale of each block under `d`, by the exact error of `nearest` and its neighbours."""
    best = np.full_like(nearest, np.inf)
    scales, q = np.zeros_like(nearest), np.zeros_like(x)
    for k in NEIGHBOURS:
        tried = np.minimum(np.maximum(nearest + k, np.float32(-128)), np.float32(127))
        step = d[:, None] * tried
        tried_q = codes(x * reciprocal(step)[..., None], -32, 31)
        off = step[..., None] * tried_q - x
        error = total(weights * off * off)
        better = error < best
        best, scales = np.where(better, error, best), np.where(better, tried, scales)
        q = np.where(better[..., None], tried_q, q)
    return _Found(total(best), d, scales, q)


def _fit_super(x: Floats, weights: Floats, found: _Found) -> Floats:
    """Step 3: the fp16 d that fits best to given codes and scales; as it was where nothing is to fit."""
    wq = weights * found.q
    cross = total(found.scales * total(wq * x))
    squares = total(found.scales * found.scales * total(wq * found.q))
    d = cross * reciprocal(squares)
    return half_scale_or(np.where(d != ZERO, d, found.d), found.d)


def _less(a: _Found, b: _Found) -> _Found:
    """The solution of less error, `b` where they are equal."""
    one = a.error < b.error
    return _Found(
        np.where(one, a.error, b.error),
        np.where(one, a.d, b.d),
        np.where(one[:, None], a.scales, b.scales),
        np.where(one[:, None, None], a.q, b.q),
    )
