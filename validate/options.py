"""What a user may say about a measurement; the command line reads its defaults here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .limits import TABLE, Limits, Table


@dataclass(frozen=True)
class ValidateOptions:
    """How to measure, and what to accept.

    protocol   a name in protocols.PROTOCOLS; None: what a saved reference was measured by, else protocols.DEFAULT
    n_ctx      windows of another length than the protocol's own
    stride     tokens between the starts of overlapping windows (protocol strided)
    chunks     at most so many windows of each text; None: all of it
    limits     gates that take the place of the table's; table: in place of the default one
    noise_floor  measure what rounding activations to bf16 does to the reference itself
    attribute  measure what each layer of a candidate costs by itself, on a few windows (about half the square of the
               number of layers in passes through one)
    generate   tokens that each model writes after a few fixed prompts; 0: none
    max_ram    bytes that may be held: by hidden states, which beyond it lie in a file (None: half of what is free), and by a
               model that generates (None: generations.MAX_RAM)
    device     what computes: cpu, cuda, or auto, which is the card where there is one
    resume     a folder that remembers how far it came, and from which it goes on; save_every: seconds between
               two savings, 0: every step
    save_reference  where to keep the reference for later candidates; overwrite: replace what is there
    resamples  of the bootstrap, from `seed`
    slice_rows of the vocabulary at once; threads for comparing weights (the forward's threads are torch's own setting)
    """

    protocol: str | None = None
    n_ctx: int | None = None
    stride: int | None = None
    chunks: int | None = None
    limits: Limits = field(default_factory=Limits)
    table: Table = TABLE
    noise_floor: bool = True
    generate: int = 32
    max_ram: int | None = None
    device: str = "auto"
    resume: Path | None = None
    save_every: float = 30.0
    attribute: bool = False
    save_reference: Path | None = None
    overwrite: bool = False
    resamples: int = 10_000
    seed: int = 0
    slice_rows: int = 4096
    threads: int = 2
