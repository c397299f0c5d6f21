"""What a reader returns: named places in files, nothing read yet.

    Checkpoint
      tensors   {name: StoredTensor(shape, dtype, file, offset, strides)}
      metadata  whatever the header said, as plain values
      files     the files it came from

A `StoredTensor` reads any range of its rows by `pread` into memory that smelt owns. There are no memory maps: a file that
is cut or replaced while it is read becomes an error, never a crash, and memory is what we say it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType, Shape, matrix_shape
from ..errors import FormatError, InputError

Bytes = NDArray[np.uint8]

SPAN = 32 << 20  # bytes read at once for a view whose columns are not adjacent
PAGE = 4096


class SourceFile:
    """A file held open for reading; its size is fixed when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        # Non-blocking, so that opening a named pipe returns and can be refused; regular files do not care.
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
        status = os.fstat(self._fd)
        self.nbytes = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise InputError(f"{path}: is not a regular file")

    def read_into(self, buffer: Bytes, offset: int) -> None:
        """Fill `buffer` (contiguous) from byte `offset`; FormatError where the file ends first."""
        view = buffer.data.cast("B")
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self._fd, [view[done:]], offset + done)
            except OSError as error:
                raise InputError(f"{self.path}: byte {offset + done} cannot be read: {error.strerror}") from error
            if got == 0:
                raise FormatError(
                    f"{self.path}: ends at byte {offset + done}, wanted {len(view)} bytes at {offset}: "
                    "the file was cut, or changed while it was read"
                )
            done += got

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes at `offset`, for headers."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.nbytes:
            raise FormatError(f"{self.path}: {nbytes} bytes at {offset} lie outside the file of {self.nbytes} bytes")
        buffer = np.empty(nbytes, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def close(self) -> None:
        """Give the descriptor back; reading afterwards is an error."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        self.close()


def _in_step(nbytes: int, offset: int) -> Bytes:
    """uint8[nbytes], uninitialised, that lies as far into a page of memory as `offset` lies into a page of the file.

    On AMD's Zen 3 the kernel copies 11 GB/s from and to its page cache, but 1.8 where the target lies 1 to 31 bytes further
    into its page than the source, as malloc's own arrays (16 bytes into theirs) do for page-aligned tensors.
    """
    memory = np.empty(nbytes + PAGE, np.uint8)
    first = (offset - memory.ctypes.data) % PAGE
    return memory[first : first + nbytes]


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies. `strides` (in elements) only for a view that is not row-contiguous, as .pth files hold."""

    name: str
    shape: Shape
    dtype: DType
    file: SourceFile
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's own elements."""
        return self.dtype.tensor_nbytes(self.shape)

    def read(self, start_row: int, stop_row: int) -> Bytes:
        """Rows [start_row, stop_row) of the matrix [prod(shape[:-1]), shape[-1]] -> uint8[rows, row_nbytes], owned."""
        rows, columns = matrix_shape(self.shape)
        if not 0 <= start_row <= stop_row <= rows:
            raise InputError(f"{self.file.path}: {self.name}: rows {start_row}..{stop_row} of {rows}")
        width = self.dtype.row_nbytes(columns)
        offset = self.offset + start_row * width
        out = _in_step((stop_row - start_row) * width, offset).reshape(stop_row - start_row, width)
        if out.size == 0:
            return out
        if self.strides is None:
            self.file.read_into(out, offset)
        else:
            self._read_strided(out, start_row)
        return out

    def _read_strided(self, out: Bytes, start_row: int) -> None:
        """A 1-D or 2-D view with any non-negative strides, in spans of at most `SPAN` bytes (or one row or column)."""
        size = self.dtype.nbytes
        strides = self.strides or ()
        row_stride, column_stride = (0, 1, *strides)[-2:] if len(strides) != 1 else (0, strides[0])
        n_rows, columns = out.shape[0], out.shape[1] // size
        elements = out.reshape(n_rows, columns, size)
        by_row = row_stride >= column_stride
        major, minor = (n_rows, columns) if by_row else (columns, n_rows)
        step, inner = (row_stride, column_stride) if by_row else (column_stride, row_stride)
        extent = (minor - 1) * inner + 1
        base = start_row * row_stride
        chunk = max(1, SPAN // max(1, max(step, extent) * size))
        for first in range(0, major, chunk):
            count = min(chunk, major - first)
            span = np.empty(((count - 1) * step + extent) * size, np.uint8)
            self.file.read_into(span, self.offset + (base + first * step) * size)
            view = np.lib.stride_tricks.as_strided(span, (count, minor, size), (step * size, inner * size, 1))
            if by_row:
                elements[first : first + count] = view
            else:
                elements[:, first : first + count] = view.transpose(1, 0, 2)


@dataclass(frozen=True)
class Checkpoint:
    """A reader's result: only headers have been read."""

    format: str
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, Any]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    shape: Shape
    dtype: DType

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return self.dtype.tensor_nbytes(self.shape)


@dataclass(frozen=True)
class FileLayout:
    """Every byte of a file that is going to be written has its place.

    `pieces` are (offset, bytes) that are known now (headers); `slots` maps a tensor's name to the offset of its data;
    what neither covers is zero.
    """

    nbytes: int
    pieces: tuple[tuple[int, bytes], ...] = ()
    slots: Mapping[str, int] = field(default_factory=dict)


def literal(content: bytes) -> FileLayout:
    """A file whose whole content is known now, such as a config."""
    return FileLayout(len(content), ((0, content),))
