"""The arithmetic of every number format: encode and decode. Knows rows, never files.

    reference/  numpy, readable: this is the specification
    cpu/        numba copies, same file names, same signatures
    gpu/        Triton copies, same file names, torch CUDA tensors in and out

Every module has `DTYPE`, `decode(packed)` and, unless the type can only be read, `encode(rows, importance=None)`:

    encode  float32[n, columns], float32[columns] or None -> uint8[n, DTYPE.row_nbytes(columns)]
    decode  uint8[n, row_nbytes] -> float32[n, columns]
"""

from .scheme import Scheme, cast_scheme, decode

__all__ = ["Scheme", "cast_scheme", "decode"]
