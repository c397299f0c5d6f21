from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from smelt.errors import StorageError, UsageError
from smelt.formats import disk, target
from smelt.formats.checkpoint import FileLayout, literal
from smelt.formats.transaction import Transaction, write_atomically

NEW = bytes(range(256)) * 40
LAYOUT = FileLayout(len(NEW), ((0, NEW[:100]),), {"w": 100})


def write_file(path: Path, *, force: bool = False, sources: tuple[Path, ...] = (), manifest: bool = True) -> None:
    with Transaction(path, {path.name: LAYOUT}, folder=False, force=force, sources=sources) as transaction:
        transaction.write(path.name, 100, np.frombuffer(NEW[100:], np.uint8))
        if manifest:
            transaction.add(path.name + ".smelt.json", b"{}")
        transaction.commit()


def write_folder(path: Path, *, force: bool = False, sources: tuple[Path, ...] = (), manifest: bool = True) -> None:
    files = {"a.bin": LAYOUT, "b.bin": LAYOUT, "config.json": literal(b"new")}
    with Transaction(path, files, folder=True, force=force, sources=sources) as transaction:
        for name in ("a.bin", "b.bin"):
            transaction.write(name, 100, NEW[100:])
        if manifest:
            transaction.add("smelt.json", b"{}")
        transaction.commit()


Write = Callable[..., None]
KINDS = pytest.mark.parametrize("write", [write_file, write_folder], ids=["file", "folder"])


def content_of(path: Path) -> dict[str, bytes] | bytes | None:
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in path.iterdir()}
    return path.read_bytes() if path.exists() else None


NEW_CONTENT: dict[Write, Any] = {
    write_file: NEW,
    write_folder: {"a.bin": NEW, "b.bin": NEW, "config.json": b"new", "smelt.json": b"{}"},
}


def make_old(write: Write, path: Path) -> Any:
    if write is write_folder:
        path.mkdir()
        (path / "config.json").write_bytes(b"old")
        (path / "stale.bin").write_bytes(b"old")
    else:
        path.write_bytes(b"old")
    return content_of(path)


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def leftovers(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if ".smelt.part" in name or ".smelt.old" in name]


@KINDS
def test_commit_publishes_exactly_the_planned_and_added_bytes(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "out")
    assert content_of(tmp_path / "out") == NEW_CONTENT[write]
    expected = ["out", "out.smelt.json"] if write is write_file else ["out"]
    assert names_in(tmp_path) == expected


def test_bytes_that_nothing_covers_are_zero(tmp_path: Path) -> None:
    layout = FileLayout(5000, ((10, b"x"),))
    with Transaction(tmp_path / "out", {"out": layout}, folder=False, force=False) as transaction:
        transaction.commit()
    assert (tmp_path / "out").read_bytes() == bytes(10) + b"x" + bytes(4989)


@KINDS
def test_leaving_without_commit_leaves_nothing(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "commit", lambda self: None)
    write(tmp_path / "out")
    assert names_in(tmp_path) == []


@KINDS
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_keeps_the_old_version_and_leaves_nothing_else(
    tmp_path: Path, write: Write, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_old(write, tmp_path / "out")

    def interrupt(self: Transaction) -> None:
        raise error

    monkeypatch.setattr(Transaction, "commit", interrupt)
    with pytest.raises(error):
        write(tmp_path / "out", force=True)
    assert content_of(tmp_path / "out") == old
    assert names_in(tmp_path) == ["out"]


@KINDS
def test_an_existing_target_needs_force(tmp_path: Path, write: Write) -> None:
    old = make_old(write, tmp_path / "out")
    with pytest.raises(UsageError, match="--force"):
        write(tmp_path / "out")
    assert content_of(tmp_path / "out") == old
    write(tmp_path / "out", force=True)
    assert content_of(tmp_path / "out") == NEW_CONTENT[write]
    assert leftovers(tmp_path) == []


@KINDS
def test_a_target_that_appears_during_the_work_is_not_replaced(tmp_path: Path, write: Write) -> None:
    commit = Transaction.commit

    def racing(self: Transaction) -> None:
        make_old(write, tmp_path / "out")
        commit(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(UsageError, match="meanwhile"):
        patch.setattr(Transaction, "commit", racing)
        write(tmp_path / "out")
    assert content_of(tmp_path / "out") in (b"old", {"config.json": b"old", "stale.bin": b"old"})
    assert names_in(tmp_path) == ["out"]


def test_refuses_a_file_where_a_folder_is_wanted_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="is a file"):
        write_folder(tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="is a folder"):
        write_file(tmp_path / "folder", force=True)


def test_force_does_not_replace_a_folder_that_holds_folders(tmp_path: Path) -> None:
    (tmp_path / "home" / "letters").mkdir(parents=True)
    with pytest.raises(UsageError, match="letters"):
        write_folder(tmp_path / "home", force=True)
    assert (tmp_path / "home" / "letters").is_dir()


def test_refuses_a_missing_parent_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_file(tmp_path / "nowhere" / "out")


@pytest.mark.parametrize("name", ["../x", "", ".", "..", "a/b", "a\\b", "nul\0"])
def test_refuses_names_that_are_not_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="plain file name"):
        Transaction(tmp_path / "out", {name: LAYOUT}, folder=True, force=False)
    transaction = Transaction(tmp_path / "out", {"a": LAYOUT}, folder=True, force=False)
    with transaction, pytest.raises(UsageError, match="plain file name"):
        transaction.add(name, b"")


@pytest.mark.parametrize("link", ["same", "symlink", "hardlink", "dotted"])
def test_refuses_a_target_that_is_an_input(tmp_path: Path, link: str) -> None:
    source = tmp_path / "model.bin"
    source.write_bytes(b"old")
    path = tmp_path / "out"
    if link == "symlink":
        path.symlink_to(source)
    elif link == "hardlink":
        os.link(source, path)
    else:
        path = source if link == "same" else tmp_path / "." / ".." / tmp_path.name / "model.bin"
    with pytest.raises(UsageError, match="is the input"):
        write_file(path, force=True, sources=(source,))
    assert source.read_bytes() == b"old"
    assert leftovers(tmp_path) == []


def test_refuses_the_name_of_an_input_that_is_itself_a_link(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "model.bin").symlink_to("blob")
    for path in (tmp_path / "model.bin", tmp_path / "blob"):
        with pytest.raises(UsageError, match="is the input"):
            write_file(path, force=True, sources=(tmp_path / "model.bin",))


def test_refuses_a_target_that_contains_or_lies_inside_an_input(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(b"old")
    with pytest.raises(UsageError, match="contains the input"):
        write_folder(folder, force=True, sources=(folder / "w.bin",))
    with pytest.raises(UsageError, match="lies inside the input"):
        write_file(folder / "out", sources=(folder,))
    (tmp_path / "alias").symlink_to(folder)
    with pytest.raises(UsageError, match="lies inside the input"):
        write_file(tmp_path / "alias" / "out", sources=(folder,))
    write_file(folder / "out", sources=(folder / "w.bin",))


def test_replacing_a_link_leaves_what_it_led_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("elsewhere")
    write_file(tmp_path / "out", force=True)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out").read_bytes() == NEW


def test_refuses_writes_outside_the_plan(tmp_path: Path) -> None:
    with Transaction(tmp_path / "out", {"out": LAYOUT}, folder=False, force=False) as transaction:
        for offset, data in ((-1, b"x"), (len(NEW), b"x"), (len(NEW) - 1, b"xy"), (1 << 70, b"x")):
            with pytest.raises(UsageError, match="outside the planned"):
                transaction.write("out", offset, data)
        with pytest.raises(UsageError, match="not a planned file"):
            transaction.write("other", 0, b"x")
        transaction.write("out", len(NEW), b"")
        with pytest.raises(UsageError, match="written twice"):
            transaction.add("out", b"")
    with pytest.raises(UsageError, match="not a planned file"):
        transaction.write("out", 0, b"x")
    with pytest.raises(UsageError, match="outside the planned"):
        Transaction(tmp_path / "out", {"out": FileLayout(3, ((0, b"long"),))}, folder=False, force=False)
    with pytest.raises(UsageError, match="one file"):
        Transaction(tmp_path / "out", {"a": LAYOUT, "b": LAYOUT}, folder=False, force=False)


def test_threads_write_disjoint_ranges(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (64, 1000), np.uint8)
    with Transaction(tmp_path / "out", {"out": FileLayout(rows.size)}, folder=False, force=False) as transaction:
        threads = [
            threading.Thread(
                target=lambda first=first: [transaction.write("out", i * 1000, rows[i]) for i in range(first, 64, 8)]
            )
            for first in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        transaction.commit()
    assert (tmp_path / "out").read_bytes() == rows.tobytes()


def test_an_array_of_any_dtype_or_order_is_written_as_its_bytes(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    with Transaction(tmp_path / "out", {"out": FileLayout(48)}, folder=False, force=False) as transaction:
        transaction.write("out", 0, array)
        transaction.write("out", 24, array.T)
        transaction.commit()
    assert (tmp_path / "out").read_bytes() == array.tobytes() + array.T.tobytes()


def test_short_and_interrupted_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwrite, iter(range(1 << 30))

    def short(fd: int, data: memoryview, offset: int) -> int:
        if next(calls) % 3 == 0:
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(fd, data[:997], offset)

    monkeypatch.setattr(os, "pwrite", short)
    write_file(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == NEW


def test_a_write_that_takes_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    with pytest.raises(StorageError, match="failure"):
        write_file(tmp_path / "out")
    assert names_in(tmp_path) == []


def test_says_how_much_space_is_needed_before_any_work(tmp_path: Path) -> None:
    huge = FileLayout(1 << 60)
    transaction = Transaction(tmp_path / "out", {"out": huge}, folder=False, force=False)
    with pytest.raises(StorageError, match=r"needs 1,152,921,504,623,624,192 bytes, [\d,]+ are free"), transaction:
        pytest.fail("the block was entered")
    assert names_in(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="blocks are reserved on Linux only")
def test_the_space_is_reserved_before_any_work(tmp_path: Path) -> None:
    with Transaction(tmp_path / "out", {"out": FileLayout(3 << 20)}, folder=False, force=False):
        assert (tmp_path / ".out.smelt.part").stat().st_blocks * 512 >= 3 << 20


@KINDS
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replace"])
def test_a_system_without_the_linux_calls_gives_the_same_result(
    tmp_path: Path, write: Write, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "_function", lambda name: None)
    if replace:
        make_old(write, tmp_path / "out")
    write(tmp_path / "out", force=replace)
    assert content_of(tmp_path / "out") == NEW_CONTENT[write]
    assert leftovers(tmp_path) == []


class Fault:
    """Fails the `at`-th call of a name, once or from then on."""

    def __init__(self, owner: Any, name: str, patch: pytest.MonkeyPatch, code: int, at: int, sticky: bool) -> None:
        self.real, self.code, self.at, self.sticky, self.calls = getattr(owner, name), code, at, sticky, 0
        patch.setattr(owner, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.at or (self.sticky and self.calls > self.at):
            raise OSError(self.code, os.strerror(self.code))
        return self.real(*arguments, **options)


PLACES = {
    "open": (os, "open"),
    "pwrite": (os, "pwrite"),
    "fsync": (os, "fsync"),
    "truncate": (os, "truncate"),
    "mkdir": (os, "mkdir"),
    "statvfs": (os, "statvfs"),
    "allocate": (disk, "allocate"),
    "rename": (disk, "rename"),
    "rename_new": (disk, "rename_new"),
    "exchange": (disk, "exchange"),
}


@KINDS
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "sticky"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", PLACES)
def test_any_failing_call_leaves_the_old_or_the_new_version_whole(
    tmp_path: Path, write: Write, call: str, code: int, sticky: bool
) -> None:
    for setting in ("nothing", "old", "old, without exchange"):
        for at in range(1, 40):
            folder = tmp_path / f"{setting}-{at}"
            folder.mkdir()
            old = make_old(write, folder / "out") if setting != "nothing" else None
            with pytest.MonkeyPatch.context() as patch:
                if setting == "old, without exchange":
                    patch.setattr(disk, "_function", lambda name: None)
                fault = Fault(*PLACES[call], patch, code, at, sticky)
                try:
                    write(folder / "out", force=old is not None)
                    failed = False
                except StorageError as error:
                    failed = True
                    assert "\n" not in str(error)
                    assert os.strerror(code) in str(error)
            rolled_back = not (
                sticky and call == "rename" and setting == "old, without exchange" and write is write_folder
            )
            if rolled_back:
                assert content_of(folder / "out") in ((old, NEW_CONTENT[write]) if failed else (NEW_CONTENT[write],))
                assert leftovers(folder) == []
            elif failed:  # nothing can be renamed any more: the old version waits, and the next run gives it back
                assert content_of(folder / "out") in (old, None)
                with pytest.raises(UsageError, match="--force"):
                    write(folder / "out")
                assert content_of(folder / "out") == old
                assert leftovers(folder) == []
            if fault.calls < at:
                break
        else:
            pytest.fail(f"{call} is called without end")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_manifest_is_put_back_when_the_main_rename_fails(tmp_path: Path, at: int) -> None:
    make_old(write_file, tmp_path / "out")
    (tmp_path / "out.smelt.json").write_bytes(b"old manifest")
    with pytest.MonkeyPatch.context() as patch:
        fault = Fault(disk, "exchange", patch, errno.EIO, at, False)
        if at < 3:
            with pytest.raises(StorageError):
                write_file(tmp_path / "out", force=True)
        else:
            write_file(tmp_path / "out", force=True)
    expected = (b"old", b"old manifest") if at < 3 else (NEW, b"{}")
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "out.smelt.json").read_bytes()) == expected
    assert fault.calls >= min(at, 2)
    assert leftovers(tmp_path) == []


def test_a_manifest_without_its_file_is_withdrawn(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError):
        Fault(disk, "rename_new", patch, errno.EIO, 1, True)
        write_file(tmp_path / "out")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EDQUOT], ids=["EACCES", "EROFS", "EDQUOT"])
def test_a_read_only_folder_or_a_spent_quota_is_a_storage_error(tmp_path: Path, code: int) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="choose"):
        Fault(os, "open", patch, code, 1, True)
        write_file(tmp_path / "out")
    assert names_in(tmp_path) == []


CHILD = """
import os, signal, sys
from pathlib import Path
import smelt.formats.transaction as module
from smelt.formats import disk
from smelt.formats.checkpoint import FileLayout
path, folder, point, step = Path(sys.argv[1]), sys.argv[2] == "folder", sys.argv[3], int(sys.argv[4])
calls = 0
def watch(owner, name):
    real = getattr(owner, name)
    def counted(*arguments, **options):
        global calls
        result = real(*arguments, **options)
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, counted)
if point == "wait":
    pass
elif point == "no-exchange":
    disk._function = lambda name: None
if point != "wait":
    for owner, name in ((os, "open"), (os, "pwrite"), (os, "fsync"), (os, "truncate"), (disk, "rename"),
                        (disk, "exchange"), (disk, "rename_new"), (disk, "remove"), (disk, "allocate")):
        watch(owner, name)
names = ["a.bin", "b.bin"] if folder else [path.name]
with module.Transaction(path, {n: FileLayout(9) for n in names}, folder=folder, force=True) as transaction:
    for name in names:
        transaction.write(name, 0, b"childmade")
    if point == "wait":
        print("ready", flush=True)
        sys.stdin.readline()
    transaction.add("smelt.json" if folder else path.name + ".smelt.json", b"child")
    transaction.commit()
print("done")
"""
CHILD_CONTENT = {"file": b"childmade", "folder": {"a.bin": b"childmade", "b.bin": b"childmade", "smelt.json": b"child"}}


def child(path: Path, kind: str, point: str, step: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(path), kind, point, str(step)]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path.parent
    )


@pytest.mark.long
@pytest.mark.parametrize("point", ["exchange", "no-exchange"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_killed_after_any_call_is_cleaned_up_by_the_next(tmp_path: Path, kind: str, point: str) -> None:
    killed_at_every_call(tmp_path, kind, point, range(1, 60))


@pytest.mark.parametrize(("kind", "point", "step"), [("file", "exchange", 5), ("folder", "no-exchange", 13)])
def test_a_killed_run_is_cleaned_up_by_the_next(tmp_path: Path, kind: str, point: str, step: int) -> None:
    killed_at_every_call(tmp_path, kind, point, range(step, step + 2))


def killed_at_every_call(tmp_path: Path, kind: str, point: str, steps: range) -> None:
    write: Write = write_folder if kind == "folder" else write_file
    for step in steps:
        folder = tmp_path / str(step)
        folder.mkdir()
        old = make_old(write, folder / "out")
        process = child(folder / "out", kind, point, step)
        process.communicate(timeout=60)
        allowed = (old, CHILD_CONTENT[kind]) + ((None,) if (kind, point) == ("folder", "no-exchange") else ())
        assert content_of(folder / "out") in allowed
        if process.returncode == 0:
            return
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(UsageError, match="--force"):  # the old version is there again, or the new one is
            write(folder / "out")
        assert content_of(folder / "out") in (old, CHILD_CONTENT[kind])
        write(folder / "out", force=True)
        assert content_of(folder / "out") == NEW_CONTENT[write]
        assert leftovers(folder) == []
    assert steps.stop < 60, "the child never came to its end"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_live_run_keeps_a_second_one_off_its_target(tmp_path: Path, kind: str) -> None:
    write: Write = write_folder if kind == "folder" else write_file
    path = tmp_path / "out"
    process = child(path, kind, "wait", 0)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    for force in (False, True):
        with pytest.raises(UsageError, match="another run"):
            write(path, force=force)
    assert leftovers(tmp_path) == [".out.smelt.part"]
    process.communicate("go\n", timeout=60)
    assert process.returncode == 0
    assert content_of(path) == CHILD_CONTENT[kind]
    assert leftovers(tmp_path) == []


@KINDS
def test_of_many_runs_on_one_target_exactly_one_wins(tmp_path: Path, write: Write) -> None:
    results: list[str] = []
    barrier = threading.Barrier(8)

    def run() -> None:
        barrier.wait()
        try:
            write(tmp_path / "out")
            results.append("won")
        except UsageError:
            results.append("refused")

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["refused"] * 7 + ["won"]
    assert content_of(tmp_path / "out") == NEW_CONTENT[write]
    assert leftovers(tmp_path) == []


@KINDS
def test_a_leftover_on_a_file_system_without_locks_is_left_for_the_user(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "lock", lambda fd: None)
    make_old(write, tmp_path / ".out.smelt.part")
    with pytest.raises(UsageError, match="remove it"):
        write(tmp_path / "out")
    assert content_of(tmp_path / ".out.smelt.part") is not None
    disk.remove(tmp_path / ".out.smelt.part")
    write(tmp_path / "out")
    assert content_of(tmp_path / "out") == NEW_CONTENT[write]


def test_a_leftover_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"old")
    (tmp_path / ".out.smelt.part").symlink_to("precious")
    with pytest.raises(StorageError):
        write_file(tmp_path / "out")
    assert (tmp_path / "precious").read_bytes() == b"old"


@pytest.mark.skipif(sys.platform != "linux", reason="exchange of two names is a Linux call")
def test_a_reader_sees_the_old_or_the_new_folder_never_less(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_folder(path)
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                seen.append("the target is missing")
                return
            os.close(fd)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and not seen:
        write_folder(path, force=True)
    stop.set()
    reader.join()
    assert seen == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root and the mount command")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_found_before_the_work(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = {"out": FileLayout(2 << 20)}
    with (
        pytest.raises(StorageError, match="are free"),
        Transaction(small_disk / "out", layout, folder=False, force=False),
    ):
        pytest.fail("the block was entered")
    monkeypatch.setattr(target, "MARGIN", -(2 << 20))  # the check is fooled, the reservation is not
    with (
        pytest.raises(StorageError, match="No space left"),
        Transaction(small_disk / "out", layout, folder=False, force=False),
    ):
        pytest.fail("the block was entered")
    assert names_in(small_disk) == []


def test_write_atomically_replaces_only_with_force(tmp_path: Path) -> None:
    write_atomically(tmp_path / "report.html", b"one")
    with pytest.raises(UsageError, match="--force"):
        write_atomically(tmp_path / "report.html", b"two")
    write_atomically(tmp_path / "report.html", b"two", force=True)
    assert (tmp_path / "report.html").read_bytes() == b"two"
    assert names_in(tmp_path) == ["report.html"]


def test_an_empty_file_can_be_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "empty", b"")
    assert (tmp_path / "empty").read_bytes() == b""


@KINDS
def test_no_descriptor_stays_open(tmp_path: Path, write: Write) -> None:
    before = len(names_in(Path("/proc/self/fd"))) if Path("/proc/self/fd").is_dir() else None
    if before is None:
        pytest.skip("needs /proc")
    for _ in range(3):
        write(tmp_path / "out", force=True)
    assert len(names_in(Path("/proc/self/fd"))) == before
