"""What encodes the steps of a run: the CPU, or a card for the types that have a kernel there. Imports torch only for a card.

    auto   the card where there is one and a step can use it, else the CPU; the notes say which
    cpu    the CPU alone
    cuda   the card; an error where there is none

Either gives the same bytes, so the device never shows in the output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING

from ..dtypes import DTYPES, DType
from ..errors import DeviceError, UsageError
from ..kernels.card import driver_present, has_kernel
from ..kernels.scheme import Packed, Rows, decode
from .plan import Step

if TYPE_CHECKING:
    from ..kernels.gpu.pipeline import Card

DEVICES = ("auto", "cpu", "cuda")


@dataclass
class StoredRows:
    """Rows as the source has them, and, decoded at most once, as float32."""

    dtype: DType
    raw: Packed

    @cached_property
    def decoded(self) -> Rows:
        """float32[n, columns]."""
        return decode(self.dtype, self.raw)


@dataclass(frozen=True)
class Device:
    """Encodes steps; `left` are the types that stay on the CPU although there is a card."""

    card: Card | None = None
    left: tuple[str, ...] = ()

    def encode(self, step: Step, rows: StoredRows) -> dict[str, Packed]:
        """`rows` as the step stores them. NonFiniteError, ScaleOverflowError."""
        target = DTYPES.get(step.scheme.name.upper())
        if self.card is None or target is None or not has_kernel(target):
            return step.scheme.encode(rows.decoded, step.importance)
        return {"": self.card.encode(target, rows.dtype, rows.raw, step.importance)}

    def notes(self) -> list[str]:
        """What a user should know of it; nothing where the CPU did it all as ever."""
        if self.card is None:
            return []
        left = [f"encoded on the CPU, for want of a kernel for the card: {', '.join(self.left)}"] if self.left else []
        return [*self.card.notes(), *left]


def check_device(name: str) -> None:
    """UsageError where the device `name` is unknown, DeviceError where it is asked for and not there. Starts nothing on it."""
    if name not in DEVICES:
        raise UsageError(f"--device {name}: wanted one of {', '.join(DEVICES)}")
    if name != "cuda":
        return
    if not driver_present():
        raise DeviceError("--device cuda: this system has no NVIDIA driver; say --device cpu, or auto")
    if not import_module("..kernels.gpu.pipeline", __package__).card_present():
        raise DeviceError("--device cuda: torch finds no CUDA device: install a CUDA build of it, or say --device cpu")


def open_device(name: str, steps: Iterable[Step]) -> Device:
    """The device `name` for `steps`; UsageError where it is unknown, DeviceError where it is not there."""
    check_device(name)
    if name == "cpu":
        return Device()
    encoded = {step.scheme.name for step in steps if not step.copies}
    block_types = {word: DTYPES[word.upper()] for word in encoded if word.upper() in DTYPES}
    block_types = {word: dtype for word, dtype in block_types.items() if dtype.is_block}
    useful = any(has_kernel(dtype) for dtype in block_types.values())
    if name == "auto" and not (useful and driver_present()):
        return Device()
    pipeline = import_module("..kernels.gpu.pipeline", __package__)
    if not pipeline.card_present():
        return Device()
    return Device(pipeline.Card(), tuple(sorted(w for w, dtype in block_types.items() if not has_kernel(dtype))))
