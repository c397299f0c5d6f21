"""A tile: many blocks side by side, element-major, so that every SIMD lane works on a block of its own.

    rows      block 0: x0 x1 x2 ...      tile[i, lane]:  x0 of block 0, x0 of block 1, ...
              block 1: x0 x1 x2 ...                      x1 of block 0, x1 of block 1, ...

A sum over a block is then a loop over i, in the reference's order, with no reduction across lanes: exact and vectorised.
Super-blocks of k blocks put block j of super-block b in lane j * count + b, so that sums over j need none either.
Arrays are copied by loops: numba compiles `a[:] = b` with a message of its own making, which costs 3.7 s.
Inner loops take 4 elements at a time (`STEP`), which LLVM unrolls: 4.2 cycles for 8 candidate codes and their three sums
on a Zen 3 core, 6 without.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit
from .transpose import SIDE, transpose_8x8

Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]

STEP = 4
MAGIC = np.float32(12582912.0)  # 1.5 * 2^23: adding and subtracting it rounds half to even, as np.rint does
TINY, ZERO, ONE = np.float32(1e-30), np.float32(0), np.float32(1)

VALUE_REFUSED, SOUND = -2, -1  # a kernel's answer; 0 or more is the first super-block whose scale overflows


@jit
def reciprocal(value: np.float32) -> np.float32:
    """As the reference's: 0 where the value is nearly 0."""
    inverse: np.float32 = ONE / value
    return inverse if abs(value) > TINY else ZERO


@jit
def code(value: np.float32, low: np.float32, high: np.float32) -> np.float32:
    """Clamp, then round half to even."""
    rounded: np.float32 = np.float32(min(max(value, low), high) + MAGIC) - MAGIC
    return rounded


@jit
def height(tile: Floats) -> int:
    """Elements of a block, at most 63: the mask proves to LLVM that no index is negative, which saves a quarter."""
    rows: int = tile.shape[0] & 63
    return rows


@jit
def magnitude_bits(bits: Bits, first: int, stop: int) -> np.uint32:
    """The largest magnitude in rows [first, stop), as float32 bits: integer comparison orders infinity and NaN last."""
    largest: np.uint32 = np.uint32(0)
    flat = bits[first:stop].reshape(-1)  # one loop, not one a row: rows are short
    for i in range(flat.shape[0]):
        largest = max(largest, np.uint32(flat[i] & np.uint32(0x7FFFFFFF)))
    return largest


@jit
def load(blocks: Floats, first: int, tile: Floats) -> None:
    """Super-blocks from `first` on -> tile[width, lanes]; zeros after the last one."""
    n, elements = blocks.shape
    width, lanes = tile.shape
    count = lanes * width // elements
    source, target = blocks.reshape(-1), tile.reshape(-1)
    for b in range(0, count, SIDE):
        if count % SIDE == 0 and first + b + SIDE <= n:
            _load_eight(source, (first + b) * elements, elements, target, lanes, count, b)
        else:
            for k in range(b, min(b + SIDE, count)):
                if first + k < n:
                    _load_one(source, (first + k) * elements, elements, target, lanes, count, k)
                else:
                    tile[:, k::count] = ZERO


@jit
def load_importance(importance: Floats, first: int, tile: Floats) -> None:
    """importance[super-blocks in a row, elements] repeats from row to row -> tile[width, lanes]."""
    per_row, elements = importance.shape
    width, lanes = tile.shape
    count = lanes * width // elements
    source, target = importance.reshape(-1), tile.reshape(-1)
    for b in range(0, count, SIDE):
        row = (first + b) % per_row
        if count % SIDE == 0 and row + SIDE <= per_row:
            _load_eight(source, row * elements, elements, target, lanes, count, b)
        else:
            for k in range(b, min(b + SIDE, count)):
                _load_one(source, (first + k) % per_row * elements, elements, target, lanes, count, k)


@jit
def _load_eight(source: Floats, start: int, elements: int, target: Floats, lanes: int, count: int, b: int) -> None:
    """Eight super-blocks from index `start` on -> the lanes of the super-blocks from `b` on."""
    width = elements * count // lanes
    for j in range(lanes // count):
        for i in range(0, width, SIDE):
            at = start + j * width + i
            transpose_8x8(source, at, at + 4 * elements, elements, target, i * lanes + j * count + b, lanes)


@jit
def _load_one(source: Floats, start: int, elements: int, target: Floats, lanes: int, count: int, b: int) -> None:
    """One super-block -> the lanes of the super-block `b`."""
    width = elements * count // lanes
    for j in range(lanes // count):
        for i in range(width):
            target[i * lanes + j * count + b] = source[start + j * width + i]


@jit
def sum_squares(x: Floats, result: Floats) -> None:
    """result[lane] = sum x^2."""
    result[:] = ZERO
    for i in range(0, x.shape[0], STEP):
        for lane in range(x.shape[1]):
            s = result[lane]
            for k in range(STEP):
                s += x[i + k, lane] * x[i + k, lane]
            result[lane] = s


@jit
def sum_super(values: Floats, result: Floats) -> None:
    """values[lanes] -> result[count]: the sum over a super-block's blocks, in order."""
    count = result.shape[0]
    result[:] = ZERO
    for j in range(values.shape[0] // count):
        for b in range(count):
            result[b] += values[j * count + b]


@jit
def extremes(x: Floats, low: Floats, high: Floats) -> None:
    """low[lane], high[lane] = the least and the largest element."""
    for lane in range(x.shape[1]):
        low[lane] = high[lane] = x[0, lane]
    for i in range(0, x.shape[0], STEP):
        for lane in range(x.shape[1]):
            least, most = low[lane], high[lane]
            for k in range(STEP):
                least, most = min(least, x[i + k, lane]), max(most, x[i + k, lane])
            low[lane], high[lane] = least, most


@jit
def spread(values: Floats, result: Floats) -> None:
    """values[count] -> result[lanes]: each super-block's number in all its lanes."""
    count = values.shape[0]
    for j in range(result.shape[0] // count):
        for b in range(count):
            result[j * count + b] = values[b]
