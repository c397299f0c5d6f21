"""The calls to the system: what they ask for, and what happens where the system cannot."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from smelt.dtypes import F16
from smelt.errors import StorageError
from smelt.formats import checkpoint, disk
from smelt.formats.checkpoint import FileLayout, SourceFile, StoredTensor
from smelt.formats.transaction import Transaction


@pytest.mark.parametrize(
    ("offset", "nbytes", "asked"),
    [
        (0, 8192, (0, 8192)),
        (100, 8192, (0, 8192)),  # the page that the range begins in, not the one that it leaves unfinished
        (4096, 4095, None),
        (5000, 10, None),
        (8000, 200, (4096, 4096)),
    ],
)
def test_writing_starts_with_whole_pages_alone(
    monkeypatch: pytest.MonkeyPatch, offset: int, nbytes: int, asked: tuple[int, int] | None
) -> None:
    calls: list[tuple[int, int]] = []

    def sync_file_range(_fd: int, first: int, count: int, _flags: int) -> int:
        calls.append((first, count))
        return 0

    monkeypatch.setattr(disk, "_function", lambda name: sync_file_range)
    assert disk.start_writing(3, offset, nbytes, Path("m.gguf"))
    assert calls == ([] if asked is None else [asked])


def test_a_failing_disk_is_told_while_it_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "start_writing", fail)
    layout = {"m.gguf": FileLayout(8192)}
    with (
        pytest.raises(StorageError, match="the disk reports a failure"),
        Transaction(tmp_path / "m.gguf", layout, folder=False, force=False) as transaction,
    ):
        transaction.write("m.gguf", 0, bytes(8192))
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_cannot_start_early_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_function", lambda name: None)
    assert not disk.start_writing(3, 0, 4096, tmp_path)
    with Transaction(tmp_path / "m", {"m": FileLayout(10_000)}, folder=False, force=False) as transaction:
        transaction.write("m", 0, bytes(range(250)) * 40)
        transaction.commit()
    assert (tmp_path / "m").read_bytes() == bytes(range(250)) * 40


def test_large_data_is_written_in_pieces_that_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_PIECE", 1000)
    content = np.random.default_rng(0).integers(0, 256, 5555, dtype=np.uint8)
    fd = disk.create(tmp_path / "m")
    disk.write_all(fd, content, 7, tmp_path / "m")
    os.close(fd)
    assert (tmp_path / "m").read_bytes() == bytes(7) + content.tobytes()


@pytest.mark.parametrize("offset", [0, 16, 64, 4095, 4096])
def test_rows_lie_in_memory_as_far_into_a_page_as_in_the_file(tmp_path: Path, offset: int) -> None:
    path = tmp_path / "weights"
    content = np.random.default_rng(0).integers(0, 256, 3 * checkpoint.PAGE, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    tensor = StoredTensor("t", (4, 1024), F16, SourceFile(path), offset)
    rows = tensor.read(1, 4)
    assert (rows.ctypes.data - offset - 2048) % checkpoint.PAGE == 0
    assert np.array_equal(rows.reshape(-1), content[offset + 2048 : offset + 8192])
