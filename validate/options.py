"""What a user may say about a measurement; the command line reads its defaults here."""

from __future__ import annotations

from dataclasses import dataclass, field

from .limits import TABLE, Limits, Table


@dataclass(frozen=True)
class ValidateOptions:
    """How to measure, and what to accept.

    protocol   a name in protocols.PROTOCOLS; n_ctx: windows of another length than the protocol's own
    stride     tokens between the starts of overlapping windows (protocol strided)
    chunks     at most so many windows of each text; None: all of it
    limits     gates that take the place of the table's; table: in place of the default one
    noise_floor  measure what rounding activations to bf16 does to the reference itself
    resamples  of the bootstrap, from `seed`
    slice_rows of the vocabulary at once; threads for comparing weights (the forward's threads are torch's own setting)
    """

    protocol: str = "llamacpp"
    n_ctx: int | None = None
    stride: int | None = None
    chunks: int | None = None
    limits: Limits = field(default_factory=Limits)
    table: Table = TABLE
    noise_floor: bool = True
    resamples: int = 10_000
    seed: int = 0
    slice_rows: int = 4096
    threads: int = 2
