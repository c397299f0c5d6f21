"""The weights of the searches with importance in types without super-blocks: Q4_0, Q4_1, Q5_0, Q5_1.

    w = importance * sqrt(mean of x^2 over the row + x^2) + blend * sqrt(mean of x^2 over the row)

Of the second term an outlier, whose x^2 is FAR means or more, gets only `faint`; reference/row_weights.py says why. A kernel of
its own finds the means first: a row's sum is eight interleaved float64 sums, one a thread, added in order.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..reference import row_weights as reference
from . import launch
from .blocks import widen
from .search import in_order, load_block

FAR = tl.constexpr(float(reference.FAR))


@triton.jit(do_not_specialize=["n_rows", "row_blocks"])
def _mean_square(rows, mean, n_rows, row_blocks, BLOCKS: tl.constexpr):
    lane = tl.arange(0, BLOCKS * 8)
    row = tl.program_id(0).to(tl.int64) * BLOCKS + lane // 8
    inside = row < n_rows
    place = rows + row * row_blocks * 32 + lane % 8
    eighth = tl.zeros((BLOCKS * 8,), tl.float64)
    for i in range(0, row_blocks):
        for k in tl.static_range(0, 4):
            x = widen(tl.load(place + i * 32 + k * 8, mask=inside, other=0.0))
            eighth += (x * x).to(tl.float64)
    total = in_order(eighth, 8)
    tl.store(mean + row, (total / (row_blocks * 32)).to(tl.float32), mask=inside & (lane % 8 == 0))


@triton.jit
def row_weights(x, importance, mean, block, inside, row_blocks, BLEND: tl.constexpr, FAINT: tl.constexpr):
    """The weights of blocks of 32, as `x` is: a tuple of 32 vectors."""
    row = block // row_blocks
    given = load_block(importance + (block - row * row_blocks) * 32, inside, 32, 5)
    row_mean = tl.load(mean + row, mask=inside, other=0.0)
    even = BLEND * tl.sqrt_rn(row_mean)
    far = FAR * row_mean
    weight = ()
    for i in tl.static_range(0, 32):
        square = x[i] * x[i]
        weight += (given[i] * tl.sqrt_rn(row_mean + square) + tl.where(square < far, even, FAINT * even),)
    return weight


# 16 rows are 128 sums, one for each thread of 4 warps
MEAN_SQUARE = launch.Launch(
    _mean_square, {"rows": "rows", "mean": "*fp32", "n_rows": "i64", "row_blocks": "i64"}, 16, 4
)


def row_knowledge(rows: torch.Tensor, importance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What a weighted kernel is given beside the rows: relative importance, mean of x^2 of each row, blocks in a row."""
    rows = rows.contiguous()
    mean = torch.empty(rows.shape[0], dtype=torch.float32, device=rows.device)
    if rows.numel():
        MEAN_SQUARE(rows.shape[0], rows, mean, rows.shape[0], rows.shape[1] // 32)
    return launch.importance_of(rows, importance), mean, rows.shape[1] // 32
