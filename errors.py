"""Every error that smelt raises on purpose.

    SmeltError
    |-- UsageError          2   an option that cannot be, a target that exists or is an input
    |-- InputError          3   what was given cannot be used
    |   |-- FormatError         a file is malformed, truncated or lies about itself
    |   |-- UnsafePickleError   a pickle names something other than tensors
    |   |-- ModelError          the files are sound, the model in them is not: names, shapes, facts
    |   |-- NonFiniteError      a weight is NaN or infinite
    |   `-- ScaleOverflowError  a value or a block scale does not fit into the target's 16-bit float
    |-- PluginError         3   a format, family or scheme of another package does not keep its contract
    |-- StorageError        4   the disk is full, the folder is read-only
    `-- DeviceError         4   the card is not there, or has no memory left for even one row

The number is the command line's exit code. A message says what, where (file, tensor, byte), got and wanted, and what to
do next, in one line.
"""

from __future__ import annotations


class SmeltError(Exception):
    """The root: anything a user can be told in one line."""

    exit_code = 3


class UsageError(SmeltError):
    """The request itself cannot be carried out."""

    exit_code = 2


class InputError(SmeltError):
    """The input cannot be used."""


class FormatError(InputError):
    """A file is malformed: nothing in it is to be trusted."""


class UnsafePickleError(FormatError):
    """A pickle asks for a global that is not on the allow-list. It was parsed, never executed."""


class ModelError(InputError):
    """Sound files, but not a model that smelt can map: unmapped names, wrong shapes, missing facts."""


class ValueAtError(InputError):
    """An error that lies at one row and column of a matrix; `row` and `column` count from 0."""

    def __init__(self, message: str, row: int = 0, column: int = 0) -> None:
        super().__init__(message)
        self.row = row
        self.column = column


class NonFiniteError(ValueAtError):
    """A weight is NaN or infinite."""


class ScaleOverflowError(ValueAtError):
    """A value, or a block's scale, is beyond the largest number of the target's 16-bit float."""


class PluginError(SmeltError):
    """What another package brings through an entry point cannot be loaded, is not what it should be, or its name is taken."""


class StorageError(SmeltError):
    """The disk or its permissions stand in the way."""

    exit_code = 4


class DeviceError(SmeltError):
    """The card stands in the way."""

    exit_code = 4


def quoted(value: object) -> str:
    """A value that came from a file, fit for a message: quoted, ASCII, on one line, cut to 100 characters."""
    text = ascii(value[:100] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 100 else f"{text[:100]}..."
