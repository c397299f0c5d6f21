"""The codebooks of the IQ types on a GPU: points looked up in a table in global memory, small enough for a cache."""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from ..reference import grids
from .super_block import store_weights


@cache
def grid_table(name: str, device: torch.device) -> torch.Tensor:
    """The points of a type, float32[points, 8 or 4] on `device`."""
    return torch.from_numpy(grids.grid(name)).to(device)


@triton.jit
def field(words, index, shift, BITS: tl.constexpr, mask):
    """BITS bits of word `index` from `shift` on -> int32."""
    return (tl.load(words + index, mask=mask, other=0).to(tl.int32) >> shift) & ((1 << BITS) - 1)


@triton.jit
def word_pair(words, index, mask):
    """Words `index` and `index` + 1 as one of 32 bits, the first lowest."""
    low = tl.load(words + index, mask=mask, other=0).to(tl.int32) & 0xFFFF
    return low | (tl.load(words + index + 1, mask=mask, other=0).to(tl.int32) << 16)


@triton.jit
def with_parity(signs):
    """Seven sign bits -> eight, with an even number set."""
    parity = signs ^ (signs >> 4)
    parity = parity ^ (parity >> 2)
    parity = (parity ^ (parity >> 1)) & 1
    return signs | (parity << 7)


@triton.jit
def look_up(grid, point):
    """int32[S, G] -> float32[S, G, 256 / G]: the numbers of each point."""
    W: tl.constexpr = 256 // point.shape[1]
    return tl.load(grid + point[:, :, None] * W + tl.arange(0, W)[None, None, :])


@triton.jit
def store_points(weights, first, inside, values, signs, step):
    """step * sign * number, of float32[S, G, 256 / G], sign bytes int32[S, 32] and float32[S, J]."""
    S: tl.constexpr = step.shape[0]
    J: tl.constexpr = step.shape[1]
    negative = ((signs[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1) == 1
    values = tl.reshape(values, (S, J, 256 // J))
    values = tl.where(tl.reshape(negative, (S, J, 256 // J)), -values, values)
    store_weights(weights, first, inside, step[:, :, None] * values)
