"""A digest of a tensor's values that does not care at which dtype, in what order or on how many threads rows are read.

    a[j]    = the bits of value j as float32 + key[j]          mod 2^32, j < columns; key[j] = splitmix64(j) >> 32
    row     = sum a[j] * a[j + half] for j < half              mod 2^64, half = ceil(columns / 2); a[columns] = key[columns]
    tensor  = sum mix(row[i] + (i + 1) * 0x9E3779B97F4A7C15)   mod 2^64, i: the row's number

A sum over rows may be taken in any order, and a permuted row keeps the number that it has in the canonical layout. It is
made to find damage, not to withstand somebody who wants to hide it: SHA-256 is for that. Sources: NH (Black et al., UMAC,
CRYPTO 1999), splitmix64 (Steele et al., OOPSLA 2014).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..dtypes import BF16, F16, DType
from .cpu.half import BITS16, INFINITY, MAGNITUDE, widen_half
from .cpu.jit import jit
from .scheme import Packed, decode

Words = NDArray[np.uint32]
Longs = NDArray[np.uint64]

GOLDEN, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT30, SHIFT27, SHIFT31, SHIFT32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
MODULUS = 1 << 64


def digest_rows(dtype: DType, packed: Packed, numbers: NDArray[np.int64]) -> int:
    """uint8[n, row_nbytes] at `dtype`, their row numbers int64[n] -> what they add to the tensor's digest, mod 2^64."""
    return digest_finite_rows(dtype, packed, numbers)[0]


def digest_finite_rows(dtype: DType, packed: Packed, numbers: NDArray[np.int64]) -> tuple[int, bool]:
    """`digest_rows`, and whether every value is finite, in one pass."""
    if packed.size == 0:
        return 0, True
    rows = np.empty(len(packed), np.uint64)
    if dtype in (F16, BF16):
        halves = packed.view("<u2").astype(np.uint16, copy=False)
        largest = (_half_rows if dtype == F16 else _bfloat_rows)(halves, _keys(halves.shape[1]), rows)
    else:
        words = np.ascontiguousarray(decode(dtype, packed)).view(np.uint32)
        largest = _word_rows(words, _keys(words.shape[1]), rows)
    mixed = _mix(rows + (numbers.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return int(mixed.sum(dtype=np.uint64)), bool(largest < INFINITY)


def add_digests(first: int, second: int) -> int:
    """The digest of two disjoint sets of rows of one tensor."""
    return (first + second) % MODULUS


@lru_cache(maxsize=16)
def _keys(columns: int) -> Words:
    numbers = np.arange(1, columns + 2, dtype=np.uint64) * GOLDEN
    keys: Words = (_mix(numbers) >> SHIFT32).astype(np.uint32)
    return keys


def _mix(z: Longs) -> Longs:
    """splitmix64's finisher, element by element."""
    z = (z ^ (z >> SHIFT30)) * FIRST
    z = (z ^ (z >> SHIFT27)) * SECOND
    mixed: Longs = z ^ (z >> SHIFT31)
    return mixed


@jit
def _row(words: Words, keys: Words) -> np.uint64:
    """One row's sum. The halves are slices: LLVM vectorises no index that might be negative; 0.5 cycles a value, not 1.3."""
    columns = words.shape[0]
    pairs, half = columns // 2, (columns + 1) // 2
    a, b, key_a, key_b = words[:pairs], words[half:], keys[:pairs], keys[half:columns]
    total: np.uint64 = np.uint64(0)
    for j in range(pairs):
        total += np.uint64(np.uint32(a[j] + key_a[j])) * np.uint64(np.uint32(b[j] + key_b[j]))
    if pairs < half:
        total += np.uint64(np.uint32(words[pairs] + keys[pairs])) * np.uint64(keys[columns])
    return total


@jit
def _largest(words: Words, before: np.uint32) -> np.uint32:
    """The largest magnitude of a row as float32 bits, or `before`: infinity and NaN are above all others."""
    largest: np.uint32 = before
    for j in range(words.shape[0]):
        largest = max(largest, np.uint32(words[j] & MAGNITUDE))
    return largest


@jit
def _word_rows(words: Words, keys: Words, rows: Longs) -> np.uint32:
    """Fills `rows`; answers with the largest magnitude of all."""
    largest: np.uint32 = np.uint32(0)
    for i in range(words.shape[0]):
        rows[i], largest = _row(words[i], keys), _largest(words[i], largest)
    return largest


@jit
def _half_rows(halves: NDArray[np.uint16], keys: Words, rows: Longs) -> np.uint32:
    """Widened a row at a time, into the processor's cache: each loop alone vectorises better than all in one."""
    words = np.empty(halves.shape[1], np.uint32)
    largest: np.uint32 = np.uint32(0)
    for i in range(halves.shape[0]):
        row = halves[i]
        for j in range(words.shape[0]):
            words[j] = np.float32(widen_half(np.uint32(row[j]))).view(np.uint32)
        rows[i], largest = _row(words, keys), _largest(words, largest)
    return largest


@jit
def _bfloat_rows(halves: NDArray[np.uint16], keys: Words, rows: Longs) -> np.uint32:
    words = np.empty(halves.shape[1], np.uint32)
    largest: np.uint32 = np.uint32(0)
    for i in range(halves.shape[0]):
        row = halves[i]
        for j in range(words.shape[0]):
            words[j] = np.uint32(np.uint32(row[j]) << BITS16)
        rows[i], largest = _row(words, keys), _largest(words, largest)
    return largest
