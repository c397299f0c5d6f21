"""The only thing that writes: a target appears whole, or not at all.

    plan     every byte has its place; target, sources and free space are looked at before any work
    write    .<name>.smelt.part, a file or a folder beside the target, locked while its run lives; any thread, any order
    commit   fsync files -> fsync folder -> one rename (with force: one exchange) -> fsync parent -> old version removed

At any moment the target's name holds a whole old version, a whole new one, or nothing. The part's name is fixed, so
its lock (flock) is also what keeps two runs off one target, and a killed run leaves one thing, which the next run finds
unlocked and removes. A file system without RENAME_EXCHANGE replaces a folder in two renames: between them the target is
absent and the old version is `.<name>.smelt.old`, which the next run puts back. Files added beside a single file (its
manifest) are renamed just before it, and put back if it then fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import TracebackType

from ..errors import UsageError
from . import disk
from .checkpoint import Bytes, FileLayout, literal
from .disk import Identity, storage_errors
from .target import check_free_space, check_sources, check_target

_N_TRIES = 100  # each try lost means that another run came between two calls


@dataclass(frozen=True)
class _Part:
    """An open file under its temporary name. `owned` tells it from whatever may have that name later.

    `turn`: one thread writes a file at a time. The kernel sees to that too, but lets the others spin while they wait.
    """

    fd: int
    path: Path
    final: Path
    owned: Identity
    turn: Lock = field(default_factory=Lock)


def _part_path(final: Path) -> Path:
    return final.with_name(f".{final.name}.smelt.part")


class Transaction:
    """Write `files` ({name: FileLayout}) to `target`, a file or a folder of files; nothing stays without `commit`.

        with Transaction(Path("model.gguf"), {"model.gguf": layout}, folder=False, force=False) as transaction:
            transaction.write("model.gguf", offset, rows)      # from any thread
            transaction.add("model.gguf.smelt.json", manifest)
            transaction.commit()

    UsageError before any work where the target cannot be (see `check_target`) or another run is writing it;
    StorageError for everything that the disk refuses.
    """

    def __init__(
        self,
        target: Path,
        files: Mapping[str, FileLayout],
        *,
        folder: bool,
        force: bool,
        sources: Iterable[Path] = (),
    ) -> None:
        self.target = target
        self._files = dict(files)
        self._folder = folder
        self._force = force
        self._sources = tuple(sources)
        self._added: dict[str, bytes] = {}
        self._claimed: _Part | None = None
        self._open: dict[str, _Part] = {}
        self._siblings: list[_Part] = []
        self._held: dict[Identity, int | None] = {}
        if not folder and len(self._files) != 1:
            raise UsageError(f"{target}: a single-file target takes one file, got {len(self._files)}")
        for name, layout in self._files.items():
            self._check_name(name)
            for offset, piece in layout.pieces:
                self._check_bounds(name, offset, len(piece))

    def __enter__(self) -> Transaction:
        check_target(self.target, folder=self._folder, force=self._force, sources=self._sources)
        self._part = _part_path(self.target)
        self._aside = self.target.with_name(f".{self.target.name}.smelt.old")
        try:
            self._claim()
            check_free_space(self.target.parent, sum(layout.nbytes for layout in self._files.values()))
            for name, layout in self._files.items():
                self._make(name, layout)
        except KeyboardInterrupt:
            if self._claimed is None:  # it may have come between the making of the part and our knowing it
                with suppress(UsageError, OSError):
                    self._remove_stale()
            self._settle()
            raise
        except BaseException:
            self._settle()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._settle()

    def write(self, name: str, offset: int, data: bytes | Bytes) -> None:
        """Put `data` at byte `offset` of file `name`; safe from several threads."""
        part = self._open.get(name)
        if part is None:
            raise UsageError(f"{self.target}: {name} is not a planned file of an open transaction")
        view = disk.as_view(data)
        self._check_bounds(name, offset, view.nbytes)
        with storage_errors(part.final):
            with part.turn:
                disk.write_all(part.fd, view, offset, part.path)
            disk.start_writing(part.fd, offset, view.nbytes, part.path)

    def read(self, name: str, offset: int, nbytes: int) -> bytes:
        """`nbytes` of file `name` as written so far, for digests; safe from several threads."""
        part = self._open.get(name)
        if part is None:
            raise UsageError(f"{self.target}: {name} is not a planned file of an open transaction")
        self._check_bounds(name, offset, nbytes)
        with storage_errors(part.final):
            return disk.read_all(part.fd, offset, nbytes, part.path)

    def add(self, name: str, content: bytes) -> None:
        """One more small file, known only now: inside a folder target, beside a single-file one. Made at commit."""
        self._check_name(name)
        taken = set(self._files) if self._folder else {self.target.name}
        if name in taken or name in self._added:
            raise UsageError(f"{self.target}: {name} is written twice")
        if not self._folder:
            check_sources(self.target.with_name(name), self._sources)
        self._added[name] = content

    def commit(self) -> None:
        """Make it all durable, then give it the target's name."""
        claimed = self._claimed
        if claimed is None:
            raise UsageError(f"{self.target}: the transaction is not open")
        with storage_errors(self.target):
            for name, content in self._added.items():
                if self._folder:
                    self._make(name, literal(content))
                else:
                    self._make_sibling(name, content)
            for part in (*self._open.values(), *self._siblings):
                os.fsync(part.fd)
            if self._folder:
                os.fsync(claimed.fd)
            for part in self._siblings:
                self._replace(part)
            if self._force:
                self._replace(claimed)
            else:
                self._appear(claimed)
            disk.fsync_folder(self.target.parent)
        self._settle()

    def _check_name(self, name: str) -> None:
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise UsageError(f"{self.target}: {name!r} is not a plain file name")

    def _check_bounds(self, name: str, offset: int, nbytes: int) -> None:
        planned = self._files[name].nbytes
        if offset < 0 or offset + nbytes > planned:
            raise UsageError(f"{self.target}: {name}: {nbytes} bytes at {offset} lie outside the planned {planned}")

    def _claim(self) -> None:
        """Take the part's name: create it and lock it, removing what a killed run left there."""
        with storage_errors(self._part):
            for _ in range(_N_TRIES):
                if self._create():
                    break
            else:
                raise UsageError(f"{self.target}: other runs keep taking {self._part}: wait for them")
            if os.path.lexists(self._aside):
                self._recover()

    def _create(self) -> bool:
        """One try at owning the part's name; False when it has to be tried again."""
        try:
            fd = self._create_folder() if self._folder else disk.create(self._part)
        except FileNotFoundError:
            if not self.target.parent.is_dir():
                raise
            return False
        except FileExistsError:
            self._remove_stale()
            return False
        owned = disk.fd_identity(fd)
        self._claimed = _Part(fd, self._part, self.target, owned)  # before the lock: an interrupt finds it either way
        if disk.lock(fd) is False or disk.identity(self._part) != owned:
            self._claimed = None
            os.close(fd)  # another run took it for a dead one's before it was locked
            return False
        return True

    def _create_folder(self) -> int:
        self._part.mkdir()
        try:
            return os.open(self._part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except BaseException:
            with suppress(OSError):
                self._part.rmdir()
            raise

    def _remove_stale(self) -> None:
        """Remove what has the part's name, unless a live run holds its lock: UsageError."""
        try:
            fd = os.open(self._part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            locked = disk.lock(fd)
            if locked is None:
                raise UsageError(
                    f"{self._part}: left by a run, and without file locks its end cannot be told: remove it"
                )
            if not locked:
                raise UsageError(f"{self.target}: another run is writing it ({self._part.name}): choose another target")
            if disk.identity(self._part) == disk.fd_identity(fd):
                disk.remove(self._part)
        finally:
            os.close(fd)

    def _recover(self) -> None:
        """A run died between the two renames of a folder without exchange: the old version gets its name back."""
        if os.path.lexists(self.target):
            disk.remove(self._aside)
            return
        disk.rename(self._aside, self.target)
        check_target(self.target, folder=self._folder, force=self._force)

    def _make(self, name: str, layout: FileLayout) -> None:
        """Give a planned file its full size, reserve its space, write its known pieces."""
        final = self.target / name if self._folder else self.target
        with storage_errors(final):
            if self._folder or self._claimed is None:
                fd = disk.create(self._part / name)
                self._open[name] = _Part(fd, self._part / name, final, disk.fd_identity(fd))
            else:
                self._open[name] = self._claimed
            part = self._open[name]
            if layout.nbytes and not disk.allocate(part.fd, layout.nbytes, part.path):
                os.truncate(part.fd, layout.nbytes)
            for offset, piece in layout.pieces:
                disk.write_all(part.fd, piece, offset, part.path)

    def _make_sibling(self, name: str, content: bytes) -> None:
        """Write a file beside a single-file target under its own temporary name; the target's lock covers it."""
        final = self.target.with_name(name)
        path = _part_path(final)
        disk.remove(path)
        fd = disk.create(path)
        self._siblings.append(_Part(fd, path, final, disk.fd_identity(fd)))
        disk.write_all(fd, content, 0, path)

    def _appear(self, part: _Part) -> None:
        """The part gets a name that nothing has: UsageError if something took it meanwhile."""
        try:
            if not disk.rename_new(part.path, part.final):
                if os.path.lexists(part.final):
                    raise FileExistsError
                disk.rename(part.path, part.final)
        except FileExistsError:
            raise UsageError(f"{part.final}: was made by something else meanwhile: --force replaces it") from None

    def _replace(self, part: _Part) -> None:
        """The part gets its final name; an old version moves to the part's name, locked, until `_settle` removes it."""
        old = self._hold(part.final)
        if old and disk.exchange(part.path, part.final):
            return
        if old and self._folder:
            disk.rename(part.final, self._aside)  # `_settle` puts it back if the next line fails
        disk.rename(part.path, part.final)

    def _hold(self, final: Path) -> bool:
        """Remember, and lock, the version that is about to be replaced, so that only we remove it; False: none."""
        old = disk.identity(final)
        if old is None:
            return False
        self._held[old] = None
        with suppress(OSError):
            fd = os.open(final, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._held[old] = fd
            disk.lock(fd)
        return True

    def _settle(self) -> None:
        """Bring the disk to one of its two rest states, judged by what it holds: published, or never been here."""
        if self._claimed is None:  # nothing was made: a refused target, or settled before
            return
        claimed = self._claimed
        if disk.identity(self.target) != claimed.owned:
            for part in reversed(self._siblings):
                with suppress(OSError):
                    self._withdraw(part)
            if disk.identity(self._aside) in self._held and not os.path.lexists(self.target):
                with suppress(OSError):
                    disk.rename(self._aside, self.target)
        known = {part.owned for part in (*self._siblings, claimed)} | set(self._held)
        leftovers = [*(part.path for part in self._siblings), self._part]
        if os.path.lexists(self.target):
            leftovers.append(self._aside)
        for path in leftovers:
            if disk.identity(path) in known:
                with suppress(OSError):  # whatever cannot be removed now, the next run removes
                    disk.remove(path)
        fds = {part.fd for part in (*self._open.values(), *self._siblings, claimed)}
        for fd in fds | {fd for fd in self._held.values() if fd is not None}:
            with suppress(OSError):
                os.close(fd)
        self._open, self._siblings, self._claimed, self._held = {}, [], None, {}

    def _withdraw(self, part: _Part) -> None:
        """Take a published sibling back: the old one gets its name again where the exchange kept it."""
        if disk.identity(part.final) != part.owned:
            return
        if disk.identity(part.path) is None or not disk.exchange(part.path, part.final):
            part.final.unlink()


def write_atomically(path: Path, content: bytes, *, force: bool = False) -> None:
    """Write one small file, such as a report, through a transaction of its own."""
    with Transaction(path, {path.name: literal(content)}, folder=False, force=force) as transaction:
        transaction.commit()
