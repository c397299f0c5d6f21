"""What the codebook search starts from, compiled: each weight's importance, magnitudes and signs, the tile of a super-block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..reference.codebook import NORMAL, WIDTH
from .jit import jit
from .tile import ZERO, Floats, reciprocal

INFINITE, FULL = np.float32(np.inf), np.float32(WIDTH)

Bytes = NDArray[np.uint8]


@jit
def find_weights(x: Floats, importance: Floats, n: int, constants: Floats, w: Floats) -> None:
    """Each weight's importance, [256]; `n` counts super-blocks, `constants` are the book's."""
    total = ZERO
    for i in range(WIDTH):
        total += x[i] * x[i]
    mean = total / FULL
    if importance.shape[0] == 0:
        for i in range(WIDTH):
            w[i] = x[i] * x[i] + constants[2] * mean
        return
    relative = importance[n % importance.shape[0]]
    inverse, fourth = reciprocal(mean), ZERO
    for i in range(WIDTH):
        fourth += x[i] * x[i] * (x[i] * x[i] * inverse)
    more = constants[1] * np.sqrt(max(mean, fourth / NORMAL))
    for i in range(WIDTH):
        w[i] = relative[i] * np.sqrt(constants[0] * mean + x[i] * x[i]) + more


@jit
def find_signs(x: Floats, w: Floats, even_signs: bool, a: Floats, signs: Bytes) -> None:
    """Magnitudes and sign bytes; without sign bytes a is x."""
    if signs.shape[0] == 0:
        for i in range(WIDTH):
            a[i] = x[i]
    for j in range(signs.shape[0]):
        bits, count, least, cheapest = np.uint8(0), 0, 0, INFINITE
        for i in range(8):
            value = x[8 * j + i]
            a[8 * j + i] = abs(value)
            if value < ZERO:
                bits |= np.uint8(1 << i)
                count += 1
            cost = w[8 * j + i] * abs(value) * abs(value)
            if cost < cheapest:
                cheapest, least = cost, i
        if even_signs and count & 1:
            bits ^= np.uint8(1 << least)
            a[8 * j + least] = -a[8 * j + least]
        signs[j] = bits


@jit
def transpose(a: Floats, w: Floats, group: int, tile: Floats) -> None:
    """a | w | w a, group beside group: weight i of group j at i * lanes + j."""
    lanes = WIDTH // group
    for i in range(group):
        for j in range(lanes):
            tile[i * lanes + j] = a[j * group + i]
            tile[WIDTH + i * lanes + j] = w[j * group + i]
            tile[2 * WIDTH + i * lanes + j] = w[j * group + i] * a[j * group + i]
