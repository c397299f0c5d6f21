"""Where a measurement happens: what computes it, where hidden states live, what remembers how far it came, who hears of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version

import torch

from ..convert.model import Model
from ..convert.progress import Progress, silent
from .device import device_name, open_device
from .effort import Parts, parts
from .journal import Journal, Unsaved
from .options import ValidateOptions
from .plain import to_plain
from .question import Question, Subject
from .report import Evaluation
from .states import Keep, Room, in_memory

# What may change between two runs that go on from one another: where things lie, not what is computed.
_NOT_ASKED = {"max_ram", "resume", "save_every", "save_reference", "overwrite"}
LIBRARIES = ("smelt", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Setting:
    """By default the CPU, memory without a bound, no journal, and silence."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    keep: Keep = in_memory
    journal: Unsaved = field(default_factory=Unsaved)
    parts: Parts = field(default_factory=Parts)

    def said(self, evaluation: Evaluation) -> Evaluation:
        """The question with what computed its answer; a note where that was not the CPU."""
        name = device_name(self.device)
        note = f"computed on {name}: the CPU's numbers differ from these by rounding"
        notes = evaluation.notes if name == "cpu" else (*evaluation.notes, note)
        return replace(evaluation, device=name, notes=notes)


@contextmanager
def open_setting(
    command: str,
    subjects: Sequence[Subject],
    asked: Question,
    options: ValidateOptions,
    progress: Progress = silent,
) -> Iterator[Setting]:
    """What `options` say; files of states are gone when the block ends, a journal stays.

    DeviceError where there is no such device; UsageError where the journal's folder is of another question.
    """
    device = open_device(options.device)
    with ExitStack() as stack:
        journal = Unsaved()
        if options.resume is not None:
            key = question_key(command, subjects, asked, options, device)
            journal = stack.enter_context(Journal(options.resume, key, options.save_every))
        # Beside the journal, whose disk has to hold the states anyway; a temporary folder may be memory itself.
        room = stack.enter_context(Room(options.max_ram, options.resume))
        models = [subject.model for subject in subjects]
        yield Setting(device, room.keep, journal, parts(progress, models, len(models) - 1, asked, options))


def question_key(
    command: str, subjects: Sequence[Subject], asked: Question, options: ValidateOptions, device: torch.device
) -> dict[str, str]:
    """Everything that the numbers depend on, by the name that a refusal gives it."""
    chosen = {
        each.name: to_plain(getattr(options, each.name)) for each in fields(options) if each.name not in _NOT_ASKED
    }
    return {
        "command": command,
        **{f"version of {name}": version(name) for name in LIBRARIES},
        "number of models": str(len(subjects)),
        **{
            f"{'candidate' if index else 'model'} {index}": model_digest(each.model)
            for index, each in enumerate(subjects)
        },
        "texts": _digest([[to_plain(text) for text in asked.evaluation.texts], asked.evaluation.protocol.name]),
        **{f"option {name}": json.dumps(value) for name, value in chosen.items()},
        "option device": str(device),
        "torch's number of threads": str(torch.get_num_threads()),
    }


def model_digest(model: Model) -> str:
    """SHA-256 of what the headers say, and of each file's name, size and time: no weight is read."""
    stats = [(path.name, path.stat()) for path in model.files]
    table: Mapping[str, object] = {
        "config": model.config,
        "tensors": [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in model.tensors.items()],
        "files": [[name, status.st_size, status.st_mtime_ns] for name, status in stats],
    }
    return _digest(table)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
