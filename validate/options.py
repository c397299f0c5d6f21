"""What a user may say about a measurement; the command line reads its defaults here."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gates import Limits


@dataclass(frozen=True)
class ValidateOptions:
    """How to measure, and what to accept.

    protocol   a name in protocols.PROTOCOLS; n_ctx: windows of another length than the protocol's own
    chunks     at most so many windows of the text; None: all of it
    limits     gates that take the place of the table's
    resamples  of the bootstrap, from `seed`
    slice_rows of the vocabulary at once; threads for comparing weights (the forward's threads are torch's own setting)
    """

    protocol: str = "llamacpp"
    n_ctx: int | None = None
    chunks: int | None = None
    limits: Limits = field(default_factory=Limits)
    resamples: int = 10_000
    seed: int = 0
    slice_rows: int = 4096
    threads: int = 2
