"""Encode slabs of numpy rows on a card: through pinned memory, copies beside kernels, the CPU's bytes.

    lane 0   stage | copy in | kernel | copy out |                    stage | copy in | ...
    lane 1                     stage  | copy in  | kernel | copy out |

A slab is cut into pieces of about PIECE elements, which two lanes take in turn; each has its own stream, and the next piece
is on its way to the card before the kernel of this one is started. A thread borrows a pair of lanes for a slab. Rows go to
the card at 16 bits where the source has them so. Where the card's memory does not suffice, pieces are halved, down to one
row: an encoder works row by row, so their size never shows in the bytes.

Before a kernel is used, its bytes for the first rows that it gets are compared with the CPU's; one that differs, or that cannot
be compiled (Triton needs a C compiler), is not used, and the notes say so. What a kernel refuses is encoded again on the CPU,
whose error names the slab's first bad value.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from queue import LifoQueue
from types import ModuleType
from typing import Any

import numpy as np
import torch
from triton.errors import TritonError

from ...dtypes import BF16, F16, F32, DType
from ...errors import DeviceError, ValueAtError, quoted
from ..scheme import Packed, Rows, decode, kernel

PIECE = 1 << 19  # elements: two pieces of a run's slab. Not tuned on a card yet
PROVED = 1 << 16  # elements that the CPU encodes too, once for each kernel
PAIRS = 4  # of lanes: while one waits for its kernel, others copy
FLOATS = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
Tensor = torch.Tensor
Allocate = Callable[[tuple[int, int], torch.dtype, torch.device], Tensor]


def card_present() -> bool:
    """Whether torch can use a card."""
    return torch.cuda.is_available()


def allocate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory on the card; torch.OutOfMemoryError."""
    return torch.empty(shape, dtype=dtype, device=device)


class Lane:
    """Pinned memory on either side of one stream; a piece at a time."""

    def __init__(self, device: torch.device, allocate: Allocate) -> None:
        self._device, self._allocate = device, allocate
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._staging = self._landing = torch.empty(0, dtype=torch.uint8)
        self._rows = self._packed = torch.empty(0)
        self._target: Packed | None = None

    def upload(self, raw: Packed, dtype: torch.dtype, target: Packed) -> None:
        """Start the copy of uint8[rows, row_nbytes] to the card; its encoding is to become `target`."""
        self._staging = self._pinned(self._staging, raw.size)
        staged = self._staging[: raw.size]
        staged.numpy()[:] = raw.reshape(-1)
        with self._on_stream():
            self._rows = self._allocate((len(raw), raw.shape[1] // dtype.itemsize), dtype, self._device)
            self._rows.view(torch.uint8).view(-1).copy_(staged, non_blocking=True)
        self._target = target

    def encode(self, module: ModuleType, importance: Tensor | None) -> None:
        """Encode what was uploaded, and start its way back; ValueAtError."""
        with self._on_stream():
            self._packed = module.encode(self._rows, importance)
            self._landing = self._pinned(self._landing, self._packed.numel())
            self._landing[: self._packed.numel()].copy_(self._packed.view(-1), non_blocking=True)

    def finish(self) -> int:
        """Wait for the piece, and put it where it belongs -> its rows; 0 where there is none."""
        if self._target is None:
            return 0
        target, self._target = self._target, None
        if self._stream is not None:
            self._stream.synchronize()
        target.reshape(-1)[:] = self._landing[: target.size].numpy()
        self._rows = self._packed = torch.empty(0)
        return len(target)

    def drop(self) -> None:
        """Forget the piece and all memory."""
        if self._stream is not None:
            self._stream.synchronize()
        self._target = None
        self._staging = self._landing = torch.empty(0, dtype=torch.uint8)
        self._rows = self._packed = torch.empty(0)

    def _pinned(self, held: Tensor, nbytes: int) -> Tensor:
        """Host memory of at least `nbytes` that the card can reach: `held` where it is large enough."""
        if held.numel() >= nbytes:
            return held
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._cuda)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def _pieces(
    lanes: tuple[Lane, Lane],
    module: ModuleType,
    dtype: torch.dtype,
    raw: Packed,
    packed: Packed,
    importance: Tensor | None,
    height: int,
) -> Iterator[int]:
    """Encode `raw` into `packed` by pieces of `height` rows; yields the rows of each piece that has arrived, in order."""
    starts = range(0, len(raw), height)
    lanes[0].upload(raw[:height], dtype, packed[:height])
    for k, start in enumerate(starts):
        this, other = lanes[k % 2], lanes[(k + 1) % 2]
        yield other.finish()
        after = start + height
        if after < len(raw):
            other.upload(raw[after : after + height], dtype, packed[after : after + height])
        this.encode(module, importance)
    yield lanes[(len(starts) - 1) % 2].finish()


class Card:
    """Encodes slabs, from any number of threads.

    device    torch's name of it; "cpu" works under Triton's interpreter alone
    piece     elements that are on their way at once, for each lane
    """

    def __init__(self, device: str = "cuda", piece: int = PIECE, allocate: Allocate = allocate) -> None:
        self.device = torch.device(device)
        self.piece = piece
        self._pairs: LifoQueue[tuple[Lane, Lane]] = LifoQueue()
        for _ in range(PAIRS):
            self._pairs.put((Lane(self.device, allocate), Lane(self.device, allocate)))
        self._proving = threading.Lock()
        self._verdicts: dict[tuple[DType, DType, bool], str] = {}  # why a kernel is not used; empty where it is

    @property
    def name(self) -> str:
        """The card's own."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(self.device)

    def encode(self, dtype: DType, source: DType, raw: Packed, importance: Rows | None) -> Packed:
        """uint8[n, row_nbytes] of any float dtype -> uint8[n, row_nbytes] of `dtype`, the bytes of the CPU's encoder.

        Its errors are the CPU's too; DeviceError where not even one row fits on the card.
        """
        if source not in FLOATS:
            source, raw = F32, decode(source, raw).view(np.uint8)
        try:
            if raw.size and self._proves(dtype, source, raw, importance):
                return self._encode(dtype, source, raw, importance)
        except ValueAtError:
            pass
        return self._on_cpu(dtype, source, raw, importance)

    def notes(self) -> list[str]:
        """Which types the card encoded, and which it had to leave to the CPU."""
        with self._proving:
            verdicts = sorted({(dtype.name.lower(), verdict) for (dtype, _, _), verdict in self._verdicts.items()})
        done = [name for name, verdict in verdicts if not verdict]
        lost = [f"{name}: {verdict}, so the CPU encoded it" for name, verdict in verdicts if verdict]
        return [f"encoded on {self.name}: {', '.join(done)}", *lost] if done else lost

    def _proves(self, dtype: DType, source: DType, raw: Packed, importance: Rows | None) -> bool:
        """Whether the kernel gives the CPU's bytes; the first caller finds out, and compiles it, while others wait."""
        key = (dtype, source, importance is not None)
        with self._proving:
            if key not in self._verdicts:
                some = raw[: max(1, PROVED * source.nbytes // raw.shape[1])]
                self._verdicts[key] = self._try(dtype, source, some, importance)
            return not self._verdicts[key]

    def _try(self, dtype: DType, source: DType, raw: Packed, importance: Rows | None) -> str:
        """Why the kernel must not be used; empty where it gives the CPU's bytes."""
        try:
            found = self._encode(dtype, source, raw, importance)
        except (RuntimeError, TritonError, subprocess.CalledProcessError) as error:
            return f"its kernel does not run on {self.name} ({quoted(str(error))})"
        agrees = np.array_equal(found, self._on_cpu(dtype, source, raw, importance))
        return "" if agrees else f"its kernel's bytes on {self.name} differ from the CPU's"

    @staticmethod
    def _on_cpu(dtype: DType, source: DType, raw: Packed, importance: Rows | None) -> Packed:
        packed: Packed = kernel(dtype).encode(decode(source, raw), importance)
        return packed

    def _encode(self, dtype: DType, source: DType, raw: Packed, importance: Rows | None) -> Packed:
        module = import_module(f"{__package__}.{dtype.name.lower()}")
        columns = raw.shape[1] // source.nbytes
        packed = np.empty((len(raw), dtype.row_nbytes(columns)), np.uint8)
        given = None if importance is None else torch.tensor(importance)
        done, height = 0, max(1, self.piece // max(1, columns))
        lanes = self._pairs.get()
        try:
            while done < len(raw):
                try:
                    for rows in _pieces(lanes, module, FLOATS[source], raw[done:], packed[done:], given, height):
                        done += rows
                except torch.OutOfMemoryError:
                    self._free(lanes)
                    if height == 1:
                        raise DeviceError(
                            f"{self.name}: no memory for one row of {columns} columns to encode as {dtype}: "
                            "free memory on the card, or say --device cpu"
                        ) from None
                    height = -(-min(height, len(raw) - done) // 2)
                    self.piece = height * columns  # the next slab starts where this one found room
        except BaseException:
            for lane in lanes:
                lane.drop()
            raise
        finally:
            self._pairs.put(lanes)
        return packed

    def _free(self, lanes: tuple[Lane, Lane]) -> None:
        for lane in lanes:
            lane.drop()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
