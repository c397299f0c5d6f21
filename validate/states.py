"""Hidden states of many windows: in memory, or, past a bound, in a file without a name.

    states[c]    float32[1, T, d] of window c
    in a file    window 0 | window 1 | ...     4 T d bytes each, by pread and pwrite

What is read is what was written, bit for bit, so the place never shows in a result. A file is on disk from the start
(reserved whole before the first layer runs), is never mapped, and was unlinked when it was made: nothing of it stays after
the end, an error or a kill.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from ..errors import ModelError, StorageError
from ..formats import disk
from ..formats.checkpoint import Bytes
from ..formats.disk import storage_errors
from ..formats.target import check_free_space

SHARE = 0.5  # of the memory that is free when it starts: what states take where nothing was said
MEMORY_FILE = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class States(Protocol):
    """Hidden states float32[1, T, d], a window each; a list of tensors is one."""

    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int, /) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice, /) -> States: ...

    def __setitem__(self, index: int, value: Tensor, /) -> None: ...

    def __iter__(self) -> Iterator[Tensor]: ...


# (states of all windows, how many tokens they are together) -> the same, where they are going to live
Keep = Callable[[Iterable[Tensor], int], States]


def raw(state: Tensor) -> Bytes:
    """The bytes of float32[1, T, d]: uint8[4 T d], the tensor's own memory where it is contiguous."""
    return state.contiguous().numpy().reshape(-1).view(np.uint8)


def shapes(states: States) -> list[tuple[int, ...]]:
    """Each window's shape; reads nothing."""
    return states.shapes if isinstance(states, FileStates) else [tuple(state.shape) for state in states]


def in_memory(states: Iterable[Tensor], _n_tokens: int) -> States:
    """A `Keep` without a bound."""
    return list(states)


class FileStates:
    """States in an open file: [i] reads a window, [i] = writes it in place, a slice shares the file."""

    def __init__(self, file: IO[bytes], folder: Path, places: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """`places`: for each window its offset in bytes and its shape."""
        self._file = file
        self._folder = folder
        self._places = list(places)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Each window's."""
        return [shape for _, shape in self._places]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int, /) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice, /) -> FileStates: ...

    def __getitem__(self, index: int | slice, /) -> Tensor | FileStates:
        if isinstance(index, slice):
            return FileStates(self._file, self._folder, self._places[index])
        offset, shape = self._places[index]
        values = torch.empty(shape)
        view = raw(values).data
        done = 0
        with storage_errors(self._folder):
            while done < len(view):
                got = os.preadv(self._file.fileno(), [view[done:]], offset + done)
                if got == 0:
                    raise StorageError(f"{self._folder}: the file of hidden states was cut: start again")
                done += got
        return values

    def __setitem__(self, index: int, value: Tensor, /) -> None:
        offset, shape = self._places[index]
        if tuple(value.shape) != shape:
            raise ModelError(
                f"a layer gives states of shape {list(value.shape)}, wanted {list(shape)}: it cannot be run alone"
            )
        with storage_errors(self._folder):
            disk.write_all(self._file.fileno(), raw(value), offset, self._folder)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))


class Room:
    """Memory for states up to a bound, first come, and a file for each list that does not fit any more.

    with Room(max_ram, folder) as room:
        stream = Stream(..., keep=room.keep)
    """

    def __init__(self, max_ram: int | None = None, folder: Path | None = None) -> None:
        """`max_ram` in bytes, None: a share of what is free; `folder` for files, None: the system's temporary one."""
        self._left = default_max_ram() if max_ram is None else max_ram
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._files: list[IO[bytes]] = []

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()

    def keep(self, states: Iterable[Tensor], n_tokens: int) -> States:
        """As `Keep`. StorageError where the folder has no space for them."""
        coming = iter(states)
        first = next(coming, None)
        if first is None:
            return []
        row_nbytes = 4 * first.shape[-1]
        if n_tokens * row_nbytes <= self._left:
            self._left -= n_tokens * row_nbytes
            return list(chain([first], coming))
        return self._spill(chain([first], coming), n_tokens * row_nbytes)

    def _spill(self, states: Iterable[Tensor], nbytes: int) -> FileStates:
        check_free_space(self._folder, nbytes)
        with storage_errors(self._folder):
            file: Any = tempfile.TemporaryFile(dir=self._folder, prefix="smelt-states-")  # noqa: SIM115  (closed above)
            self._files.append(file)
            disk.allocate(file.fileno(), nbytes, self._folder)
        places: list[tuple[int, tuple[int, ...]]] = []
        offset = 0
        for state in states:
            places.append((offset, tuple(state.shape)))
            FileStates(file, self._folder, places)[-1] = state
            offset += 4 * state.numel()
        return FileStates(file, self._folder, places)


def default_max_ram() -> int:
    """Bytes: `SHARE` of the memory that programs could still have."""
    return int(SHARE * available_memory())


def available_memory() -> int:
    """Bytes that are free or can be freed, by /proc/meminfo and this control group's limit; else the machine's own."""
    fields = dict(line.split(":", 1) for line in _text(MEMORY_FILE).splitlines() if ":" in line)
    found = fields.get("MemAvailable", "").split()
    system = int(found[0]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit, used = (_text(CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    return min(system, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else system


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
