"""How bytes mean numbers: a `DType` is a name, a block length and the bytes of one block.

    F16  = (block 1,   2 bytes)       every element stands alone
    Q4_K = (block 256, 144 bytes)     256 elements of one row share 144 bytes

A row holds a whole number of blocks, so any range of rows is a range of bytes. Everywhere in smelt a tensor of shape
[..., columns] is a matrix of `rows = prod(shape[:-1])` rows of `columns`, and raw data is uint8[rows, row_nbytes].
Sizes of block types: ggml, ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from .errors import ModelError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class DType:
    """`block` elements of one row are stored in `nbytes` bytes."""

    name: str
    block: int
    nbytes: int

    @property
    def is_block(self) -> bool:
        """True for quantized types, whose elements share a block's scale."""
        return self.block > 1

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each element, scales included."""
        return self.nbytes * 8 / self.block

    def row_nbytes(self, columns: int) -> int:
        """Bytes of one row of `columns` elements; ModelError where a row is not a whole number of blocks."""
        if columns % self.block:
            raise ModelError(f"{self.name} needs rows that divide by {self.block}, got {columns} columns")
        return columns // self.block * self.nbytes

    def tensor_nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of `shape`, without padding."""
        rows, columns = matrix_shape(shape)
        return rows * self.row_nbytes(columns)

    def __str__(self) -> str:
        return self.name


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """[..., columns] -> (rows, columns); a vector is one row, a scalar one row of one."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


PLAIN = tuple(
    DType(name, 1, nbytes)
    for name, nbytes in (
        ("F64", 8),
        ("F32", 4),
        ("F16", 2),
        ("BF16", 2),
        ("F8_E4M3", 1),
        ("F8_E5M2", 1),
        ("I64", 8),
        ("I32", 4),
        ("I16", 2),
        ("I8", 1),
        ("U64", 8),
        ("U32", 4),
        ("U16", 2),
        ("U8", 1),
        ("BOOL", 1),
    )
)

BLOCK = tuple(
    DType(name, block, nbytes)
    for name, block, nbytes in (
        ("Q4_0", 32, 18),
        ("Q4_1", 32, 20),
        ("Q5_0", 32, 22),
        ("Q5_1", 32, 24),
        ("Q8_0", 32, 34),
        ("Q2_K", 256, 84),
        ("Q3_K", 256, 110),
        ("Q4_K", 256, 144),
        ("Q5_K", 256, 176),
        ("Q6_K", 256, 210),
        ("IQ1_S", 256, 50),
        ("IQ1_M", 256, 56),
        ("IQ2_XXS", 256, 66),
        ("IQ2_XS", 256, 74),
        ("IQ2_S", 256, 82),
        ("IQ3_XXS", 256, 98),
        ("IQ3_S", 256, 110),
        ("IQ4_NL", 32, 18),
        ("IQ4_XS", 256, 136),
        ("TQ1_0", 256, 54),
        ("TQ2_0", 256, 66),
        ("MXFP4", 32, 17),
        ("NVFP4", 64, 36),
    )
)

DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in PLAIN + BLOCK}

F64, F32, F16, BF16 = (DTYPES[name] for name in ("F64", "F32", "F16", "BF16"))
Q4_0, Q8_0, Q4_K, Q6_K = (DTYPES[name] for name in ("Q4_0", "Q8_0", "Q4_K", "Q6_K"))
Q4_1, Q5_0, Q5_1, Q2_K, Q3_K, Q5_K, IQ4_NL, IQ4_XS = (
    DTYPES[name] for name in ("Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "IQ4_NL", "IQ4_XS")
)
MXFP4, NVFP4, TQ1_0, TQ2_0 = (DTYPES[name] for name in ("MXFP4", "NVFP4", "TQ1_0", "TQ2_0"))
IQ3_S, IQ3_XXS, IQ2_S, IQ2_XS, IQ2_XXS, IQ1_S, IQ1_M = (
    DTYPES[name] for name in ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S", "IQ1_M")
)
FLOATS = (F64, F32, F16, BF16)
