"""Is there a card, and which types have a kernel for it? Answered without importing torch, which takes seconds."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ..dtypes import DType

# made by NVIDIA's driver on Linux, and by Windows for the Linux that it hosts
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))


def driver_present() -> bool:
    """Whether the system has a driver of the kind that CUDA needs; torch has the last word on the card itself."""
    return any(path.exists() for path in DRIVERS)


@cache
def has_kernel(dtype: DType) -> bool:
    """Whether encoding `dtype` on a card can pay: a plain float is rounded in less time than its copy to the card takes."""
    return dtype.is_block and find_spec(f"{__package__}.gpu.{dtype.name.lower()}") is not None
