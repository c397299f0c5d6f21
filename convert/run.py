"""Carry out plans: read a slab of rows, encode it, write it to its slot; slabs overlap on threads; then commit.

    thread 1   read | encode | write | read | ...
    thread 2        read | encode | write | ...        at most `threads` of them encode at a time

A slab is whole rows of one tensor, about `SLAB` elements, so the output never depends on the number of threads, and memory
is at most  2 * threads * SLAB * (source + 4 + target bytes per element), whatever the model's size (a row longer than SLAB
counts as one slab). Several plans of one model share every slab: it is read and decoded once, and each has its own target,
whose bytes add to the sum. Source: measured in docs/performance.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from ..dtypes import BF16, DTYPES, F16, F32, DType
from ..errors import InputError, NonFiniteError, ScaleOverflowError, UsageError
from ..formats.transaction import Transaction
from ..kernels.finite import count_nonfinite
from ..kernels.scheme import Packed, decode
from .checksums import SlotChecksums, seal
from .containers import OWN
from .device import Device, StoredRows, open_device
from .digests import DigestSums
from .headers import outside_sha256
from .manifest import Record, manifest
from .model import Assumption
from .packed import encoded_rows
from .plan import Plan, Step
from .progress import Progress, silent
from .sums import Sums, check_sum

# elements: 4 MiB as float32. Q8_0 of 1.3 GB on two threads took 1.4 s; 1.5 to 2.0 s with 1 << 18, 1.9 s with 1 << 22
SLAB = 1 << 20


@dataclass(frozen=True)
class RunOptions:
    """threads: how many encode at once; force: replace an existing target; slab: elements of one slab; device: device.py."""

    threads: int
    force: bool = False
    slab: int = SLAB
    source_digests: bool = False
    device: str = "auto"


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
    """Rows [start, stop) of one logical weight; `steps` has one step for each plan."""

    steps: tuple[Step, ...]
    start: int
    stop: int

    @property
    def row_nbytes(self) -> int:
        """Source bytes of one row."""
        tensor = self.steps[0].tensor
        return tensor.dtype.row_nbytes(tensor.matrix_shape[1])


@dataclass
class _Tally:
    """What the data showed, by tensor; one thread at a time adds to it.

    `checksums` of a plan with .pth or .pt files only, `sums` of one whose values must add up to something.
    """

    checksums: SlotChecksums | None = None
    sums: Sums | None = None
    routers: frozenset[str] = frozenset()
    digests: DigestSums = field(default_factory=DigestSums)
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
        if routers := self.routers.intersection(self.rounded):
            total = sum(self.rounded[name] for name in routers)
            lines.append(
                f"among them {total} values of {len(routers)} routers, which choose a token's experts: --dtype source or f32 "
                "keeps them"
            )
        return lines


def run(plan: Plan, options: RunOptions, progress: Progress | None = None) -> RunResult:
    """Write the plan's target. On any error, or Ctrl-C, the target's name holds what it held before."""
    return run_all([plan], options, progress)[0]


def run_all(plans: Sequence[Plan], options: RunOptions, progress: Progress | None = None) -> tuple[RunResult, ...]:
    """Write the targets of several plans for one model in one pass over it, each as `run` alone would.

    Nothing is published before all of them are written.
    """
    if options.threads < 1 or options.slab < 1:
        raise UsageError(f"--threads {options.threads}: wanted 1 or more")
    started = time.monotonic()
    together = _together(plans)
    device = open_device(options.device, (step for steps in together for step in steps))
    tallies = [_tally(plan) for plan in plans]
    with ExitStack() as stack:
        transactions = []
        for plan in plans:
            transaction = Transaction(
                plan.target, plan.files, folder=plan.folder, force=options.force, sources=plan.inputs
            )
            stack.push(transaction)  # before it is entered: an interrupt between the two would find no one to clean up
            transactions.append(transaction.__enter__())
        for assumption in plans[0].assumptions:
            check_assumption(assumption)
        _write_all(together, list(zip(transactions, tallies, strict=True)), options, device, progress or silent)
        for plan, transaction, tally in zip(plans, transactions, tallies, strict=True):
            if plan.expected_sum is not None and tally.sums is not None:
                check_sum(plan.expected_sum, tally.sums)
            if tally.checksums is not None:
                seal(transaction, plan.files, plan.torch_files, tally.checksums, options.threads, progress or silent)
            record = Record(_digests(plan, tally), _headers(plan, transaction), options.source_digests)
            transaction.add(plan.manifest_name, manifest(plan, record))
        for transaction in transactions:
            transaction.commit()
    seconds = round(time.monotonic() - started, 3)
    notes = [(*plan.notes, *tally.notes(), *device.notes()) for plan, tally in zip(plans, tallies, strict=True)]
    return tuple(_result(plan, said, seconds) for plan, said in zip(plans, notes, strict=True))


def _tally(plan: Plan) -> _Tally:
    """Empty, with what the plan asks for."""
    return _Tally(
        SlotChecksums() if plan.torch_files else None, Sums() if plan.expected_sum is not None else None, plan.routers
    )


def _together(plans: Sequence[Plan]) -> list[tuple[Step, ...]]:
    """The steps of all plans side by side; UsageError where they are not plans of one model in one format."""
    names = {tuple((step.name, step.tensor.shape, step.tensor.dtype) for step in plan.steps) for plan in plans}
    if len(names) != 1 or len({plan.sources for plan in plans}) != 1:
        raise UsageError(f"{len(plans)} plans share a run only if they are of the same model in the same format")
    return list(zip(*(plan.steps for plan in plans), strict=True))


def _result(plan: Plan, notes: tuple[str, ...], seconds: float) -> RunResult:
    base = plan.target if plan.folder else plan.target.parent
    return RunResult(
        plan.target,
        tuple(base / file for file in [*plan.files, plan.manifest_name]),
        plan.nbytes,
        len(plan.steps),
        seconds,
        plan.schemes,
        notes,
    )


def _digests(plan: Plan, tally: _Tally) -> dict[str, str]:
    """The digest of every canonical tensor of the plan."""
    origins = [(step.origin, step.scheme) for step in plan.steps if step.origin is not None]
    others = {origin.tensor.name: (origin.tensor, scheme) for origin, scheme in origins if origin.numbers is None}
    return tally.digests.finished(others)


def _headers(plan: Plan, transaction: Transaction) -> dict[str, str]:
    """The digest of every file outside its tensors, as it has been written."""
    extents: dict[str, list[tuple[int, int]]] = {name: [] for name in plan.files}
    for step in plan.steps:
        for place in (place for places in step.places.values() for place in places):
            extents[place.file].append((place.offset, (place.stop_row - place.start_row) * place.row_nbytes))
    return {
        name: outside_sha256(layout.nbytes, extents[name], partial(transaction.read, name))
        for name, layout in plan.files.items()
        if plan.to in OWN or not extents[name]  # of a third party's file nothing but its plugin tells where tensors lie
    }


def slabs(together: Sequence[tuple[Step, ...]], elements: int) -> Iterator[Slab]:
    """Row ranges of about `elements`, in file order."""
    for steps in together:
        rows, columns = steps[0].tensor.matrix_shape
        height = max(1, elements // max(1, columns))
        for start in range(0, rows, height):
            yield Slab(steps, start, min(rows, start + height))


def _write_all(
    together: Sequence[tuple[Step, ...]],
    outputs: Sequence[tuple[Transaction, _Tally]],
    options: RunOptions,
    device: Device,
    progress: Progress,
) -> None:
    """Worker threads take slabs in order; the first error by slab order is the one that is raised."""
    queue = enumerate(slabs(together, options.slab))
    total = sum(steps[0].tensor.nbytes for steps in together)
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
                _write_slab(slab, outputs, encoding, device)
                with lock:
                    done += (slab.stop - slab.start) * slab.row_nbytes
                    progress(done, total, slab.steps[0].name)
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


def _write_slab(
    slab: Slab,
    outputs: Sequence[tuple[Transaction, _Tally]],
    encoding: threading.BoundedSemaphore,
    device: Device,
) -> None:
    tensor = slab.steps[0].tensor
    raw = tensor.read(slab.start, slab.stop)
    packed = [{"": raw} if step.copies else {} for step in slab.steps]
    if not all(packed):
        with encoding:
            rows = StoredRows(tensor.dtype, raw)
            for k, (step, (_, tally)) in enumerate(zip(slab.steps, outputs, strict=True)):
                if not step.copies:
                    packed[k] = _encoded(slab, step, rows, tally, device)
    for step, stored, (transaction, tally) in zip(slab.steps, packed, outputs, strict=True):
        finite = step.origin is not None and tally.digests.add(step.origin, slab.start, *_values(step, stored))
        if step.copies and not finite:
            tally.add(tally.nonfinite, step.name, count_nonfinite(tensor.dtype, raw))
        if step.origin is not None and tally.sums is not None:
            tally.sums.add(step.origin.tensor.name, slab.start, decode(tensor.dtype, raw))
        for suffix, places in step.places.items():
            for place in places:
                if (cut := place.cut(slab.start, stored[suffix])) is not None:
                    transaction.write(place.file, *cut)
                    if tally.checksums is not None:
                        tally.checksums.add(place.file, *cut)


def _values(step: Step, stored: dict[str, Packed]) -> tuple[DType, Packed]:
    """Rows as they are stored, in a dtype that smelt decodes: a third party's scheme decodes its own."""
    if step.scheme.name.upper() in DTYPES:
        return step.scheme.stored(step.tensor.shape)[""][1], stored[""]
    return F32, np.ascontiguousarray(step.scheme.decode(stored), "<f4").view(np.uint8)


def _encoded(slab: Slab, step: Step, rows: StoredRows, tally: _Tally, device: Device) -> dict[str, Packed]:
    """`rows` as `step` stores them; the error of a value that cannot be is told with its tensor and row."""
    target = DTYPES.get(step.scheme.name.upper())
    try:
        if target is None:
            return encoded_rows(step.scheme, step.tensor.shape, rows.decoded, step.importance)
        packed = device.encode(step, rows)
    except (NonFiniteError, ScaleOverflowError) as error:
        raise _located(error, slab, step, rows) from error
    if target in (F16, BF16):
        tally.add(tally.rounded, step.name, int(np.count_nonzero(rows.decoded != decode(target, packed[""]))))
    return packed


def _located(
    error: NonFiniteError | ScaleOverflowError, slab: Slab, step: Step, rows: StoredRows
) -> NonFiniteError | ScaleOverflowError:
    """The kernel's error with the tensor's name, and row and column in it.

    Of a block whose scale is too large the kernel names the first column; the largest of its values is what is too large.
    """
    column = error.column
    if isinstance(error, ScaleOverflowError) and step.scheme.name.upper() in DTYPES:
        block = step.scheme.stored(step.tensor.shape)[""][1].block
        first = column // block * block
        column = first + int(np.abs(rows.decoded[error.row, first : first + block]).argmax())
    what = "is NaN or infinite" if isinstance(error, NonFiniteError) else "is too large for a 16-bit float"
    advice = (
        "the source is damaged: check its digests"
        if isinstance(error, NonFiniteError)
        else "choose bf16 or f32 for it, or a scheme with a wider scale"
    )
    row, column = step.in_stored(slab.start + error.row, column)
    return type(error)(
        f"{step.name}: the value at row {row}, column {column} {what} ({step.scheme.name}): {advice}",
        row,
        column,
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
