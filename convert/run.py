"""Carry out plans: read a slab of rows, encode it, write it to its slot; slabs overlap on threads; then commit.

    thread 1   read | encode | write | read | ...
    thread 2        read | encode | write | ...        at most `threads` of them encode at a time

A slab is whole rows of one tensor, about `SLAB` elements, so the output never depends on the number of threads, and memory
is at most  2 * threads * SLAB * (source + 4 + target bytes per element), whatever the model's size (a row longer than SLAB
counts as one slab). Source: measured in docs/performance.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..dtypes import BF16, DTYPES, F16
from ..errors import InputError, NonFiniteError, ScaleOverflowError, UsageError
from ..formats.transaction import Transaction
from ..kernels.finite import count_nonfinite
from ..kernels.scheme import decode
from .manifest import manifest
from .model import Assumption
from .plan import Plan, Step

SLAB = 1 << 20  # elements: 4 MiB as float32, inside a core's share of the cache; 1<<22 was no faster

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class RunOptions:
    """threads: how many encode at once; force: replace an existing target; slab: elements of one slab."""

    threads: int
    force: bool = False
    slab: int = SLAB


@dataclass(frozen=True)
class RunResult:
    """What was written. `schemes` counts tensors by scheme; `notes` are facts that a user should know."""

    target: Path
    files: tuple[Path, ...]
    nbytes: int
    tensors: int
    seconds: float
    schemes: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Slab:
    """Rows [start, stop) of one step."""

    step: Step
    start: int
    stop: int

    @property
    def row_nbytes(self) -> int:
        """Source bytes of one row."""
        return self.step.tensor.dtype.row_nbytes(self.step.tensor.matrix_shape[1])


@dataclass
class _Tally:
    """What the data showed, by tensor; one thread at a time adds to it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    nonfinite: dict[str, int] = field(default_factory=dict)
    rounded: dict[str, int] = field(default_factory=dict)

    def add(self, counts: dict[str, int], name: str, count: int) -> None:
        if count:
            with self.lock:
                counts[name] = counts.get(name, 0) + count

    def notes(self) -> list[str]:
        lines = [
            f"{name}: {count} values are NaN or infinite, kept as they are"
            for name, count in sorted(self.nonfinite.items())
        ]
        if self.rounded:
            total = sum(self.rounded.values())
            worst = max(self.rounded, key=lambda name: (self.rounded[name], name))
            lines.append(f"the dtype rounded {total} values in {len(self.rounded)} tensors, most in {worst}")
        return lines


def run(plan: Plan, options: RunOptions, progress: Progress | None = None) -> RunResult:
    """Write the plan's target. On any error, or Ctrl-C, the target's name holds what it held before."""
    if options.threads < 1 or options.slab < 1:
        raise UsageError(f"--threads {options.threads}: wanted 1 or more")
    started = time.monotonic()
    tally = _Tally()
    with Transaction(
        plan.target, plan.files, folder=plan.folder, force=options.force, sources=plan.sources
    ) as transaction:
        for assumption in plan.assumptions:
            check_assumption(assumption)
        _write_all(plan.steps, transaction, options, tally, progress or _silent)
        name = "smelt.json" if plan.folder else f"{plan.target.name}.smelt.json"
        transaction.add(name, manifest(plan))
        transaction.commit()
    base = plan.target if plan.folder else plan.target.parent
    return RunResult(
        plan.target,
        tuple(base / file for file in [*plan.files, name]),
        plan.nbytes,
        len(plan.steps),
        round(time.monotonic() - started, 3),
        plan.schemes,
        (*plan.notes, *tally.notes()),
    )


def _silent(_done: int, _total: int, _label: str) -> None:
    """No progress wanted."""


def slabs(steps: Sequence[Step], elements: int) -> Iterator[Slab]:
    """Row ranges of about `elements`, in file order."""
    for step in steps:
        rows, columns = step.tensor.matrix_shape
        height = max(1, elements // max(1, columns))
        for start in range(0, rows, height):
            yield Slab(step, start, min(rows, start + height))


def _write_all(
    steps: Sequence[Step], transaction: Transaction, options: RunOptions, tally: _Tally, progress: Progress
) -> None:
    """Worker threads take slabs in order; the first error by slab order is the one that is raised."""
    queue = enumerate(slabs(steps, options.slab))
    total = sum(step.tensor.nbytes for step in steps)
    lock, encoding, stop = threading.Lock(), threading.BoundedSemaphore(options.threads), threading.Event()
    failed: dict[int, int] = {}
    done = 0

    def work(worker: int) -> None:
        nonlocal done
        while not stop.is_set():
            with lock:
                number, slab = next(queue, (-1, None))
            if slab is None:
                return
            try:
                _write_slab(slab, transaction, encoding, tally)
                with lock:
                    done += (slab.stop - slab.start) * slab.row_nbytes
                    progress(done, total, slab.step.name)
            except BaseException:
                failed[worker] = number
                stop.set()
                raise

    with ThreadPoolExecutor(2 * options.threads, thread_name_prefix="smelt") as pool:
        futures = [pool.submit(work, worker) for worker in range(2 * options.threads)]
        try:
            wait(futures)
        finally:
            stop.set()  # Ctrl-C lands here: the slabs in flight end, then the transaction cleans up
    if failed:
        futures[min(failed, key=lambda worker: failed[worker])].result()


def _write_slab(slab: Slab, transaction: Transaction, encoding: threading.BoundedSemaphore, tally: _Tally) -> None:
    step, dtype = slab.step, slab.step.tensor.dtype
    raw = step.tensor.read(slab.start, slab.stop)
    if step.copies:
        tally.add(tally.nonfinite, step.name, count_nonfinite(dtype, raw))
        packed = {"": raw}
    else:
        with encoding:
            rows = decode(dtype, raw)
            del raw
            try:
                packed = step.scheme.encode(rows, step.importance)
            except (NonFiniteError, ScaleOverflowError) as error:
                raise _located(error, slab) from error
            target = DTYPES.get(step.scheme.name.upper())
            if target in (F16, BF16):
                tally.add(tally.rounded, step.name, int(np.count_nonzero(rows != decode(target, packed[""]))))
    for suffix, place in step.places.items():
        transaction.write(place.file, place.offset + slab.start * place.row_nbytes, packed[suffix])


def _located(error: NonFiniteError | ScaleOverflowError, slab: Slab) -> InputError:
    """The kernel's error with the tensor's name and the row counted from the tensor's start."""
    what = "is NaN or infinite" if isinstance(error, NonFiniteError) else "is too large for a 16-bit float"
    advice = (
        "the source is damaged: check its digests"
        if isinstance(error, NonFiniteError)
        else "choose bf16 or f32 for it, or a scheme with a wider scale"
    )
    row = slab.start + error.row
    return type(error)(
        f"{slab.step.name}: the value at row {row}, column {error.column} {what} ({slab.step.scheme.name}): {advice}",
        row,
        error.column,
    )


def check_assumption(assumption: Assumption) -> None:
    """Read both tensors by slabs; InputError with the assumption's own advice where a byte differs."""
    first, second = assumption.first, assumption.second
    same = first.shape == second.shape and first.dtype == second.dtype
    rows, columns = first.matrix_shape
    height = max(1, SLAB // max(1, columns))
    for start in range(0, rows if same else 0, height):
        stop = min(rows, start + height)
        same = same and bool(np.array_equal(first.read(start, stop), second.read(start, stop)))
    if not same:
        raise InputError(assumption.says)
