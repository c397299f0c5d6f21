"""A measurement that goes on where it was stopped: a folder of what it knows so far.

    FOLDER/journal.json     {format, key, records, states}      replaced whole, by one rename
    FOLDER/states-0.bin     every stream's hidden states, then its riders', float32, one after another;
    FOLDER/states-1.bin     journal.json names the one of the two that is whole, the other is being written

The key says what was asked (digests of the models' headers, sizes and times, token ids, options, versions): a folder of
another question is refused. States are synced before journal.json names them, so a kill at any moment leaves a folder to go
on from. All of them are written at once, at most every 30 s and for at most a twentieth of the time: 4 m C T d bytes for m
models and C windows of T tokens of width d, twice that on disk.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import FormatError, InputError, UsageError, quoted
from ..formats import disk
from ..formats.checkpoint import FileLayout, SourceFile
from ..formats.disk import storage_errors
from ..formats.transaction import Transaction, write_atomically
from .plain import from_plain, to_plain
from .states import raw, shapes
from .stream import Stream

FORMAT = 1
NAME = "journal.json"
SEEN = "layers"  # the record of what was seen when the states were saved
STATES = ("states-0.bin", "states-1.bin")
SHARE = 20  # work takes at least so many times as long as saving it

Value = TypeVar("Value")
Shapes = list[list[tuple[int, ...]]]  # for each list of states (a stream's own, then its riders) each window's shape


@dataclass(frozen=True)
class _Saved:
    """Where the streams were: steps of `stream.run_layers` done, the file of states and its CRC-32."""

    steps: int
    file: str
    crc32: int
    streams: list[Shapes]


class Unsaved:
    """Stands where no journal was asked for."""

    def recall(self, _name: str, _kind: Any, make: Callable[[], Value], /) -> Value:
        """What `make` makes."""
        return make()

    def restore(self, _streams: Sequence[Stream], _kind: Any, /) -> tuple[int, Any] | None:
        """Nothing was kept."""
        return None

    def save(self, steps: int, streams: Sequence[Stream], seen: Callable[[], Any], last: bool = False) -> None:
        """Nothing is kept."""


class Journal(Unsaved):
    """The open journal of one question; locked while it is open."""

    def __init__(self, folder: Path, key: Mapping[str, str], interval: float) -> None:
        """`interval`: seconds of work between two savings, at least; 0: each step is saved. UsageError where the folder holds
        another question or something else, or another run has it."""
        self.folder = folder
        self._key = dict(key)
        self._interval = interval
        self._records: dict[str, Any] = {}
        self._saved: _Saved | None = None
        with storage_errors(folder):
            folder.mkdir(exist_ok=True)
            self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if disk.lock(self._fd) is False:
                raise UsageError(f"{folder}: another run is using it: name another folder")
            self._open()
        except BaseException:
            os.close(self._fd)
            raise
        self._last = time.monotonic()
        self._took = 0.0

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def _open(self) -> None:
        path = self.folder / NAME
        if not path.exists():
            foreign = sorted(entry.name for entry in self.folder.iterdir() if not _is_ours(entry.name))
            if foreign:
                raise UsageError(f"{self.folder}: holds {quoted(foreign[0])} and no journal: name a new folder")
            self._write()
            return
        document = _read(path)
        differing = [
            name for name in {**document["key"], **self._key} if document["key"].get(name) != self._key.get(name)
        ]
        if document["format"] != FORMAT or differing:
            what = ", ".join(differing) or "format"
            raise UsageError(
                f"{self.folder}: is the journal of another run, by its {what}: remove it or name another folder"
            )
        self._records = document["records"]
        self._saved = _damage(path, lambda: from_plain(_Saved | None, document["states"]))

    def recall(self, name: str, kind: Any, make: Callable[[], Value], /) -> Value:
        """The record `name`, a value annotated `kind`, or what `make` makes, which is then kept."""
        if name in self._records:
            found: Value = _damage(self.folder / NAME, lambda: from_plain(kind, self._records[name]))
            return found
        made = make()
        self._records[name] = to_plain(made)
        self._write()
        return made

    def restore(self, streams: Sequence[Stream], kind: Any, /) -> tuple[int, Any] | None:
        """Put the streams where they were -> (steps of `run_layers` done, what was seen, annotated `kind`), or None."""
        saved = self._saved
        if saved is None:
            return None
        path = self.folder / NAME
        seen = _damage(path, lambda: from_plain(kind, self._records[SEEN]))
        if saved.file not in STATES or [len(lists[0]) for lists in saved.streams] != [len(s.states) for s in streams]:
            raise FormatError(f"{path}: its states are not those of these models: remove {self.folder}")
        reader = _Reader(self.folder / saved.file)
        for stream, (own, *riders) in zip(streams, saved.streams, strict=True):
            for window, shape in enumerate(own):
                stream.states[window] = reader.next(shape)
            stream.riders = [stream.keep(map(reader.next, rider), sum(shape[1] for shape in rider)) for rider in riders]
        if reader.crc32 != saved.crc32:
            raise FormatError(f"{reader.path}: its bytes are not those that were written: remove {self.folder}")
        return saved.steps, seen

    def save(self, steps: int, streams: Sequence[Stream], seen: Callable[[], Any], last: bool = False) -> None:
        """After `steps` steps: keep everything, unless that was done a moment ago and this is not the last step."""
        started = time.monotonic()
        if self._saved is not None and self._saved.steps == steps:
            return
        pause = max(self._interval, SHARE * self._took) if self._interval else 0.0
        if not last and started - self._last < pause:
            return
        lists = [[stream.states, *stream.riders] for stream in streams]
        table = [[shapes(states) for states in own] for own in lists]
        name = STATES[0] if self._saved is None or self._saved.file == STATES[1] else STATES[1]
        nbytes = sum(4 * prod(shape) for own in table for states in own for shape in states)
        with Transaction(self.folder / name, {name: FileLayout(nbytes)}, folder=False, force=True) as transaction:
            offset = crc32 = 0
            for state in (state for own in lists for states in own for state in states):
                content = raw(state)
                transaction.write(name, offset, content)
                offset, crc32 = offset + len(content), zlib.crc32(content.data, crc32)
            transaction.commit()
        self._saved = _Saved(steps, name, crc32, table)
        self._records[SEEN] = to_plain(seen())
        self._write()
        self._last = time.monotonic()
        self._took = self._last - started

    def _write(self) -> None:
        document = {"format": FORMAT, "key": self._key, "records": self._records, "states": to_plain(self._saved)}
        write_atomically(self.folder / NAME, json.dumps(document).encode(), force=True)


class _Reader:
    """Reads a file of states from its start to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.crc32 = 0
        self._file = SourceFile(path)
        self._offset = 0

    def next(self, shape: tuple[int, ...]) -> Tensor:
        nbytes = 4 * prod(shape)
        if self._offset + nbytes > self._file.nbytes:
            raise FormatError(f"{self.path}: ends at byte {self._file.nbytes}, wanted {nbytes} at {self._offset}")
        state = torch.empty(shape)
        content = raw(state)
        self._file.read_into(content, self._offset)
        self._offset += nbytes
        self.crc32 = zlib.crc32(content.data, self.crc32)
        return state


def discard(folder: Path) -> None:
    """Remove the journal, when its report has been written; the folder too where nothing else is in it."""
    with storage_errors(folder):
        # The name first: files of states without a journal are leftovers, a journal without them would be damaged.
        names = sorted((e.name for e in folder.iterdir() if _is_ours(e.name)), key=lambda name: name != NAME)
        for name in names:
            disk.remove(folder / name)
        if not any(folder.iterdir()):
            folder.rmdir()


def _is_ours(name: str) -> bool:
    return any(name in (own, f".{own}.smelt.part") for own in (NAME, *STATES))


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no journal: {error}: remove {path.parent}") from None
    kinds = {"format": int, "key": dict, "records": dict}
    if not isinstance(document, dict) or not all(isinstance(document.get(n), kind) for n, kind in kinds.items()):
        raise FormatError(f"{path}: is no journal of smelt: remove {path.parent}")
    return document


def _damage(path: Path, read: Callable[[], Value]) -> Value:
    """What `read` reads; FormatError names the file."""
    try:
        return read()
    except (FormatError, KeyError) as error:
        raise FormatError(f"{path}: is damaged: {error}: remove {path.parent}") from None
