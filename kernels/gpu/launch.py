"""How a Triton kernel of this folder is started, and how it says that a weight cannot be encoded.

    flag: int64 = | kind, 4 bits: 0 NaN or infinity, 1 beyond the format's range, 2 the scale overflows fp16 | block, 60 bits |

A kernel sees a matrix as a run of blocks, for a row holds a whole number of them. It cannot raise, so it lowers
`flag` to its first bad block of the worst kind (`atomic_min`, hence the same answer in any order of programs), and
`encode` here looks into that one block for the row and the column. Reading the flag waits for the device once a call.

`FUSION` is off for every kernel: a contracted multiply-add rounds once where the specification rounds twice, which
changes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
import triton

from ...dtypes import DType
from ...errors import InputError, NonFiniteError, ScaleOverflowError, UsageError
from ..reference.checks import SEARCH_LIMIT, refuse_scale, relative_importance

FUSION = False
NONE = torch.iinfo(torch.int64).max  # a flag that no block has lowered
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Tensor = torch.Tensor


@dataclass(frozen=True)
class Launch:
    """A kernel with its tuned constants.

    types     {parameter: Triton type}; `rows` and `weights` stand for a pointer to any float type
    blocks    blocks of the format that one program takes, given to the kernel as BLOCKS
    limit     the least magnitude of a weight that the kernel flags as beyond the format's range
    registers what a thread may use, where ptxas would rather spill a few than let fewer programs share a core
    """

    kernel: Any
    types: Mapping[str, str]
    blocks: int
    num_warps: int
    limit: float = float(SEARCH_LIMIT)
    registers: int | None = None

    @property
    def options(self) -> dict[str, int | bool | None]:
        """What the compiler is told."""
        return {"num_warps": self.num_warps, "enable_fp_fusion": FUSION, "maxnreg": self.registers}

    def __call__(self, n_blocks: int, *arguments: Tensor | int) -> None:
        """Run enough programs for `n_blocks`, where the first argument lies; the arguments are those of `types`, in order."""
        grid = (triton.cdiv(n_blocks, self.blocks),)
        options = self.options
        # Triton launches on the current device
        with torch.cuda.device_of(arguments[0]):  # type: ignore[no-untyped-call]
            self.kernel[grid](*arguments, BLOCKS=self.blocks, **options)


def encode(launch: Launch, dtype: DType, rows: Tensor, *knowledge: Tensor | int) -> Tensor:
    """float[n, columns] -> uint8[n, row_nbytes]; `knowledge` follows the number of blocks in the kernel's arguments.

    NonFiniteError and ScaleOverflowError carry the first bad row and column.
    """
    _check_device(rows, "rows")
    if rows.dim() != 2 or rows.dtype not in FLOATS:
        raise InputError(
            f"{dtype}: rows are {rows.dtype}{list(rows.shape)}, wanted float32, float16 or bfloat16[n, columns]"
        )
    rows = _aligned(rows)
    packed = torch.empty((rows.shape[0], dtype.row_nbytes(rows.shape[1])), dtype=torch.uint8, device=rows.device)
    n_blocks = rows.numel() // dtype.block
    if n_blocks:
        flag = torch.full((1,), NONE, dtype=torch.int64, device=rows.device)
        launch(n_blocks, rows, packed.view(_word(dtype)), flag, n_blocks, *knowledge)
        _raise_flagged(rows, dtype, launch.limit, int(flag))
    return packed


def decode(
    launch: Launch, dtype: DType, packed: Tensor, weights_dtype: torch.dtype, *knowledge: Tensor | int
) -> Tensor:
    """uint8[n, row_nbytes] -> float[n, columns] of `weights_dtype`, which rounds to nearest even."""
    _check_device(packed, "packed")
    if packed.dim() != 2 or packed.dtype != torch.uint8 or packed.shape[1] % dtype.nbytes:
        raise InputError(
            f"{dtype}: packed is {packed.dtype}{list(packed.shape)}, wanted uint8[n, a multiple of {dtype.nbytes}]"
        )
    if weights_dtype not in FLOATS:
        raise UsageError(f"{dtype}: cannot decode to {weights_dtype}; wanted float32, float16 or bfloat16")
    packed = _aligned(packed)
    n_blocks = packed.numel() // dtype.nbytes
    columns = packed.shape[1] // dtype.nbytes * dtype.block
    weights = torch.empty((packed.shape[0], columns), dtype=weights_dtype, device=packed.device)
    if n_blocks:
        launch(n_blocks, packed.view(_word(dtype)), weights, n_blocks, *knowledge)
    return weights


def importance_of(rows: Tensor, importance: Tensor) -> Tensor:
    """The importance relative to its mean, float32[columns] on the device of `rows`; the reference checks and scales it."""
    relative = relative_importance(importance.to("cpu", torch.float32).numpy(), rows.shape[-1])
    return torch.from_numpy(relative).to(rows.device)


def _word(dtype: DType) -> torch.dtype:
    """The widest integer that divides a block: kernels store words, not bytes, where they can."""
    if dtype.nbytes % 2:
        return torch.uint8
    return torch.int32 if dtype.nbytes % 4 == 0 else torch.int16


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous and on a 16-byte boundary, for which the kernels' wide loads are compiled; a copy where it is not."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _check_device(tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise UsageError(
            f"{name} lie on {tensor.device}, the Triton kernels need a CUDA device; smelt.kernels runs on the CPU"
        )


def _raise_flagged(rows: Tensor, dtype: DType, limit: float, flag: int) -> None:
    """The reference's error for the flagged block, if there is one."""
    if flag == NONE:
        return
    kind, block = divmod(flag, 1 << 60)
    if kind == 2:
        refuse_scale(block, rows.shape[1], dtype.block)
    values = rows.reshape(-1, dtype.block)[block].float()
    bad = ~torch.isfinite(values) if kind == 0 else values.abs() >= limit
    at = int(bad.to(torch.uint8).argmax())
    row, column = divmod(block * dtype.block + at, rows.shape[1])
    value = float(values[at])
    if kind == 1:
        raise ScaleOverflowError(f"{value:g} at row {row}, column {column} is beyond the format's range", row, column)
    raise NonFiniteError(f"{'NaN' if isnan(value) else 'infinity'} at row {row}, column {column}", row, column)
