"""TQ1_0 on a GPU: 256 ternary weights share one fp16 scale, five of them in a byte.

    super-block = | 48 bytes of 5 trits | 4 bytes of 4 trits | d: fp16 |     54 bytes, which the kernels see as 27 16-bit words
    the 52 bytes are three runs; in a run of `width`, byte l holds the trits first + l + width * k for k = 0, 1, ...
      width 32, 5 trits, first 0         width 16, 5 trits, first 160         width 4, 4 trits, first 240
    byte = ceil(number * 256 / 243) where number = t0 t1 t2 t3 t4 base 3,   t[k] = (byte * 3^k mod 256) * 3 / 256
    weight[i] = d * (trit[i] - 1)

The scale and the trits: ternary.py. Same bytes as the reference. Source: ggml, quantize_row_tq1_0_ref.
"""

# Triton has no types, and its tuples grow.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ...dtypes import TQ1_0
from . import launch
from .blocks import magnitude_bits, store_tile, widen, words_of
from .ternary import scale, trits

DTYPE = TQ1_0


@triton.jit(do_not_specialize=["n_blocks"])
def _encode(rows, packed, flag, n_blocks, BLOCKS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < n_blocks
    start = rows + block * 256
    wide = _load_run(start, inside, 32, 5)
    middle = _load_run(start + 160, inside, 16, 5)
    narrow = _load_run(start + 240, inside, 4, 4)
    d, inverse = scale(tl.maximum(tl.maximum(_largest(wide), _largest(middle)), _largest(narrow)), block, flag)
    place = packed + block * 27
    _store_run(place, inside, wide, inverse, 5)
    _store_run(place + 16, inside, middle, inverse, 5)
    _store_run(place + 24, inside, narrow, inverse, 4)
    tl.store(place + 26, d, mask=inside)


@triton.jit
def _load_run(start, inside, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    """float32[B, 8, WIDTH]: depth k has the weights from WIDTH * k on, 0 where there are none."""
    k = tl.arange(0, 8)[None, :, None]
    place = start[:, None, None] + k * WIDTH + tl.arange(0, WIDTH)[None, None, :]
    return widen(tl.load(place, mask=inside[:, None, None] & (k < DEPTH), other=0.0))


@triton.jit
def _largest(run):
    return tl.max(tl.max(magnitude_bits(run), axis=2), axis=1)


@triton.jit
def _store_run(place, inside, run, inverse, DEPTH: tl.constexpr):
    """A run as words of two bytes."""
    k = tl.arange(0, 8)[None, :, None]
    digit = tl.where(k < DEPTH, trits(run, inverse[:, None, None]), 0)
    power = tl.where(k == 0, 81, tl.where(k == 1, 27, tl.where(k == 2, 9, tl.where(k == 3, 3, 1))))
    number = tl.sum(digit * power, axis=1)
    word = words_of((number * 256 + 242) // 243, 2)
    column = tl.arange(0, word.shape[1])[None, :]
    tl.store(place[:, None] + column, word.to(tl.int16), mask=inside[:, None])


@triton.jit(do_not_specialize=["n_blocks"])
def _decode(packed, weights, n_blocks, BLOCKS: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    block = tl.arange(0, BLOCKS)
    inside = first + block < n_blocks
    start = packed + first * 27 + block * 27
    d = tl.load(start + 26, mask=inside, other=0).to(tl.float16, bitcast=True).to(tl.float32)
    column = tl.arange(0, 256)
    wide, narrow = column < 160, column >= 240
    within = tl.where(wide, column, tl.where(narrow, column - 240, column - 160))
    width = tl.where(wide, 32, tl.where(narrow, 4, 16))
    byte = tl.where(wide, 0, tl.where(narrow, 48, 32)) + within % width
    k = within // width
    power = tl.where(k == 0, 1, tl.where(k == 1, 3, tl.where(k == 2, 9, tl.where(k == 3, 27, 81))))
    word = tl.load(start[:, None] + (byte // 2)[None, :], mask=inside[:, None], other=0).to(tl.int32)
    fraction = (((word >> (8 * (byte % 2))[None, :]) & 0xFF) * power[None, :]) & 0xFF
    store_tile(weights, first, inside, d[:, None] * ((fraction * 3 >> 8) - 1).to(tl.float32))


ENCODE = launch.Launch(_encode, {"rows": "rows", "packed": "*i16", "flag": "*i64", "n_blocks": "i64"}, 16, 4)
DECODE = launch.Launch(_decode, {"packed": "*i16", "weights": "weights", "n_blocks": "i64"}, 16, 4)


def encode(rows: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG001
    """[n, columns] float32, float16 or bfloat16 on the device -> [n, columns / 256 * 54] uint8.

    Importance changes nothing. NonFiniteError, ScaleOverflowError.
    """
    return launch.encode(ENCODE, DTYPE, rows)


def decode(packed: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """[n, columns / 256 * 54] uint8 -> [n, columns] of `dtype` (float32, float16 or bfloat16)."""
    return launch.decode(DECODE, DTYPE, packed, dtype)
