"""What a transaction asks of the system, one call each; every one may raise OSError.

    exchange(a, b)        renameat2(RENAME_EXCHANGE)     both names exist at every moment
    rename_new(a, b)      renameat2(RENAME_NOREPLACE)    never replaces
    allocate(fd, nbytes)  fallocate(2)                   ENOSPC now rather than at 97 %
    start_writing(...)    sync_file_range(2)             the disk works while the next bytes are made, not in fsync alone

These four say whether the system could do it; where it could not, the caller has its own way. `os.posix_fallocate`
will not do: where a file system cannot reserve, the C library writes into every block, one by one.
Source: Linux man-pages, rename(2), fallocate(2), sync_file_range(2), flock(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StorageError, UsageError
from .checkpoint import Bytes

Identity = tuple[int, int]

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_PAGE = 4096
# Bytes of one write. From 2 MiB on the page cache (Linux 6.18, ext4) takes whole huge pages, which a virtual machine has mostly
# given back to its host: 1.3 GB in slabs of 2 MiB took 2.4 s of the kernel's time, 0.8 in pieces of 1 MiB, 1.0 of 128 KiB.
_PIECE = 1 << 20
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_CANNOT_LOCK = {errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.ENOSYS, errno.EINVAL}

_WAY_OUT = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "the quota is used up: free some space or choose another disk",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another",
    errno.EIO: "the disk reports a failure: check it before trusting what it holds",
    errno.EMFILE: "raise the limit of open files (ulimit -n) or write larger shards",
    errno.ENAMETOOLONG: "choose a shorter name",
}


_ARGUMENTS = {
    "renameat2": [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint],
    "fallocate": [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
    "sync_file_range": [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint],
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """An OSError becomes a StorageError: one line that names the file and the way out."""
    try:
        yield
    except OSError as error:
        way_out = _WAY_OUT.get(error.errno or 0)
        reason = f"{path}: cannot be written: {error.strerror or error}"
        raise StorageError(f"{reason}: {way_out}" if way_out else reason) from error


@cache
def _function(name: str) -> Any:
    """A C library function with errno kept, or None where this system has none."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name, None) if os.name == "posix" else None
    if function is not None:
        function.restype = ctypes.c_int
        function.argtypes = _ARGUMENTS[name]
    return function


def _supported(name: str, path: Path, *arguments: Any) -> bool:
    """Call it: True when it worked, False where system or file system lacks it, else OSError; EINTR tries again."""
    function = _function(name)
    if function is None:
        return False
    while function(*arguments) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), str(path))
    return True


def exchange(first: Path, second: Path) -> bool:
    """Swap two existing names in one step; False where that cannot be done."""
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return _supported("renameat2", second, *names, _RENAME_EXCHANGE)


def rename_new(source: Path, target: Path) -> bool:
    """Rename in one step, FileExistsError if `target` exists; False where that cannot be done."""
    names = (_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target))
    return _supported("renameat2", target, *names, _RENAME_NOREPLACE)


def rename(source: Path, target: Path) -> None:
    """Rename in one step, replacing a file of the target's name."""
    source.rename(target)


def allocate(fd: int, nbytes: int, path: Path) -> bool:
    """Reserve `nbytes` (> 0) zero bytes from the file's start; False where that cannot be done."""
    return _supported("fallocate", path, fd, 0, 0, nbytes)


def start_writing(fd: int, offset: int, nbytes: int, path: Path) -> bool:
    """Have the whole pages of `nbytes` bytes at `offset` written to the disk from now on; False where that cannot be done.

    It promises nothing: only fsync, which then has less to wait for, makes them durable. The last page, unless it is full, is
    left to whoever writes the rest of it. 1.3 GB: writing and fsync took 0.53 s together, 0.97 s one after the other.
    """
    first, end = offset - offset % _PAGE, offset + nbytes - (offset + nbytes) % _PAGE
    return end <= first or _supported("sync_file_range", path, fd, first, end - first, _SYNC_FILE_RANGE_WRITE)


def create(path: Path) -> int:
    """A new file for writing -> its descriptor; FileExistsError if anything, even a dangling link, has the name."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def as_view(data: bytes | memoryview | Bytes) -> memoryview:
    """The bytes of `data`, copied only where an array is not C-contiguous."""
    if isinstance(data, np.ndarray):
        return data.reshape(-1).view(np.uint8).data if data.flags.c_contiguous else memoryview(data.tobytes())
    return memoryview(data)


def write_all(fd: int, data: bytes | memoryview | Bytes, offset: int, path: Path) -> None:
    """Positional write of all of `data`, however few bytes the system takes at a time."""
    view = as_view(data)
    done = 0
    while done < len(view):
        try:
            count = os.pwrite(fd, view[done : done + _PIECE], offset + done)
        except InterruptedError:
            continue
        if count == 0:
            raise OSError(errno.EIO, "the system took 0 bytes", str(path))
        done += count


def read_all(fd: int, offset: int, nbytes: int, path: Path) -> bytes:
    """Positional read of exactly `nbytes`; OSError where the file ends first."""
    pieces = []
    while nbytes:
        piece = os.pread(fd, nbytes, offset)
        if not piece:
            raise OSError(errno.EIO, f"ends at byte {offset}", str(path))
        pieces.append(piece)
        offset, nbytes = offset + len(piece), nbytes - len(piece)
    return b"".join(pieces)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def identity(path: Path) -> Identity | None:
    """(device, inode) of the name itself, links not followed; None where nothing is."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def fd_identity(fd: int) -> Identity:
    """(device, inode) of an open file."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def remove(path: Path) -> None:
    """Unlink a file, a link, or a folder of files; what is gone already is fine. It never descends: ours are flat."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            path.unlink()
            return
        for entry in path.iterdir():
            entry.unlink(missing_ok=True)
        path.rmdir()


def lock(fd: int) -> bool | None:
    """True: ours until `fd` is closed. False: another process holds it. None: this file system has no locks."""
    try:
        import fcntl
    except ImportError:
        raise UsageError("smelt needs POSIX file locks to write files: use Linux, macOS or WSL") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _CANNOT_LOCK:
            return None
        raise
    return True
