"""32 codes of 4 or 5 bits written into a block, compiled: nibbles in its last 16 bytes, fifth bits in the 4 before.

Loops end at the length of `q`, not at a constant: LLVM would unroll them instead of vectorising.

Source: ggml, block_q4_0, block_q5_0; reference/fifth_bits.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .jit import jit

Bytes = NDArray[np.uint8]


@jit
def write_codes(q: Bytes, block: Bytes, start: int) -> None:
    """uint8[32] -> the bytes of `block` from `start` on: 16, or 20 where codes have a fifth bit."""
    nibbles = block.shape[0] - 16
    if nibbles > start:
        high = np.uint32(0)
        for i in range(q.shape[0]):
            high |= np.uint32(q[i] >> 4) << np.uint32(i)
        for k in range(4):
            block[start + k] = np.uint8(high >> np.uint32(8 * k) & np.uint32(255))
    n_pairs = q.shape[0] // 2
    for i in range(n_pairs):
        block[nibbles + i] = (q[i] & 15) | (q[n_pairs + i] & 15) << 4


@jit
def read_codes(block: Bytes, start: int, q: Bytes) -> None:
    """Undoes `write_codes`."""
    nibbles = block.shape[0] - 16
    n_pairs = q.shape[0] // 2
    for i in range(n_pairs):
        q[i] = block[nibbles + i] & 15
        q[n_pairs + i] = block[nibbles + i] >> 4
    if nibbles > start:
        high = np.uint32(0)
        for k in range(4):
            high |= np.uint32(block[start + k]) << np.uint32(8 * k)
        for i in range(q.shape[0]):
            q[i] |= np.uint8((high >> np.uint32(i) & np.uint32(1)) << np.uint32(4))
