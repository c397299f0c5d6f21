"""What only the written bytes can tell of torch's files: the CRC-32 of every tensor; of a Meta folder the MD5 of every file.

    while slabs are written   CRC-32 of each piece, in any order; pieces that touch are joined at once
    after the last slab       descriptors and directories of the .pth files, then checklist.chk over the finished files

    checklist.chk             "<md5 in hex>  <name>\\n" for each file, what `md5sum -c` reads: its size is known up front

MD5 has no way to join pieces, so it takes a second pass over the files, one thread a file.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..formats.checkpoint import Bytes, FileLayout
from ..formats.pth_write import TorchFile, crc32_combine
from ..formats.transaction import Transaction
from .progress import Progress

CHECKLIST = "checklist.chk"
CHUNK = 8 << 20  # bytes of a file that are hashed at once


class SlotChecksums:
    """CRC-32 of byte ranges that are written in any order, from any thread; ranges that touch are kept as one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], tuple[int, int]] = {}  # (file, first byte): (its end, CRC-32)
        self._ends: dict[tuple[str, int], int] = {}  # (file, end): first byte

    def add(self, file: str, offset: int, data: Bytes) -> None:
        """`data` has been written at `offset`; a range may be added once."""
        crc, stop = zlib.crc32(data.data), offset + data.nbytes
        with self._lock:
            before = self._ends.pop((file, offset), None)
            if before is not None:
                crc = crc32_combine(self._runs.pop((file, before))[1], crc, data.nbytes)
                offset = before
            after = self._runs.pop((file, stop), None)
            if after is not None:
                crc, stop = crc32_combine(crc, after[1], after[0] - stop), after[0]
            self._runs[file, offset] = stop, crc
            self._ends[file, stop] = offset

    def crc32(self, file: str, offset: int) -> int:
        """Of the run that begins at `offset`; 0, the CRC-32 of nothing, where none does."""
        return self._runs.get((file, offset), (0, 0))[1]


def checklist_layout(names: Sequence[str]) -> FileLayout:
    """The size of checklist.chk for files of these names; its content comes last."""
    return FileLayout(sum(len(_line("0" * 32, name)) for name in names))


def _line(digest: str, name: str) -> bytes:
    return f"{digest}  {name}\n".encode()


def seal(
    transaction: Transaction,
    files: Mapping[str, FileLayout],
    torch_files: Mapping[str, TorchFile],
    checksums: SlotChecksums,
    threads: int,
    progress: Progress,
) -> None:
    """Finish the .pth or .pt files of an open transaction, all slots written, and its checklist, if it has one."""
    for name, file in torch_files.items():
        crcs = {spec.name: checksums.crc32(name, files[name].slots[spec.name]) for spec in file.tensors}
        for offset, piece in file.finish(crcs):
            transaction.write(name, offset, piece)
    if CHECKLIST in files:
        names = listed(files)
        digests = _digests(transaction, {name: files[name].nbytes for name in names}, threads, progress)
        content = b"".join(_line(digests[name], name) for name in names)
        transaction.write(CHECKLIST, 0, content)


def listed(files: Sequence[str] | Mapping[str, FileLayout]) -> list[str]:
    """The files that Meta's checklist names, in its order."""
    return [name for name in files if name.endswith((".pth", "params.json", "tokenizer.model"))]


def _digests(transaction: Transaction, sizes: Mapping[str, int], threads: int, progress: Progress) -> dict[str, str]:
    """{name: MD5 in hex}; an interrupt ends the workers at their next chunk."""
    lock, stop = threading.Lock(), threading.Event()
    total, done = sum(sizes.values()), 0

    def digest(name: str) -> str:
        nonlocal done
        md5 = hashlib.md5(usedforsecurity=False)
        for offset in range(0, sizes[name], CHUNK):
            if stop.is_set():
                break
            nbytes = min(CHUNK, sizes[name] - offset)
            md5.update(transaction.read(name, offset, nbytes))
            with lock:
                done += nbytes
                progress(done, total, CHECKLIST)
        return md5.hexdigest()

    with ThreadPoolExecutor(threads, thread_name_prefix="smelt") as pool:
        try:
            return dict(zip(sizes, pool.map(digest, sizes), strict=True))
        finally:
            stop.set()
