"""llama-perplexity's `--kl-divergence-base` file: a model's log-probabilities in 16 bits, read a slice at a time.

    0    "_logits_"
    8    u32 n_ctx, i32 n_vocab, i32 n_chunk            little-endian, as everything
    20   i32 tokens[n_chunk][n_ctx]                     as the text gave them: a begin-of-text token stands first of all only
    then for each chunk n_ctx - 1 - n_ctx / 2 rows, of the logits at positions n_ctx / 2, ...:
         f32 scale | f32 min | u16 code[n_vocab], and one more where n_vocab is odd

    ln p(v) = min + scale * code[v]       16 nats below the likeliest token and less are stored as that

llama-perplexity evaluates each chunk with the begin-of-text token in place of its first, where the vocabulary adds one.
Rounding moves each log-probability by up to 1.2e-4 nats, and the mean KLD of a model against its own file to within 2e-6 of 0
(vocabularies of 512, 1,024 and 32,000 tokens). Source: llama.cpp, tools/perplexity/perplexity.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import FormatError, ModelError, UsageError, quoted
from ..formats.checkpoint import SourceFile
from .drift import TokenScores
from .gates import Gate, not_measured, tokenizer_gate
from .head import Slice
from .modules import as_modules
from .odds import RecordedOdds
from .options import ValidateOptions
from .protocols import Window, encode, protocol, text_digest
from .question import Part, Question, Subject, check_context, question
from .replay import Replay
from .report import Reference
from .stream import check_tensors
from .texts import Text

MAGIC = b"_logits_"
HEADER = 20  # bytes
ROW_HEADER = 8  # bytes: scale and min
SLACK = 0.01  # nats that rounding may put a log-probability above 0


@dataclass(frozen=True)
class LlamaBase:
    """An open base file whose header and size agree. `tokens` int32[n_chunks, n_ctx]."""

    path: Path
    file: SourceFile
    n_ctx: int
    n_tokens: int  # of the vocabulary
    tokens: NDArray[np.int32]
    noise_floor: None = None
    _scales: dict[int, Tensor] = field(default_factory=dict)

    @property
    def n_scored(self) -> int:
        """Positions of a chunk whose log-probabilities are there."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def entry(self) -> Reference:
        """As it stands in a report: what kind of model it was is not in the file."""
        return Reference(str(self.path), None, None, None, ())

    def ask(self, texts: Sequence[Text], candidates: Sequence[Subject], options: ValidateOptions) -> Question:
        """The file's chunks, or the first of them. UsageError for what asks another question.

        The text need not be given; one that is serves to ask the candidates' tokenizers.
        """
        how = protocol("llamacpp", self.n_ctx)
        self._check(texts, options)
        for candidate in candidates:
            check_context(candidate, how)
        bos_id = _bos_id(int(self.tokens[0, 0]), candidates)
        table = self.tokens[: options.chunks].astype(np.int64)
        if bos_id is not None:
            table[:, 0] = bos_id
        text = texts[0] if texts else Text(self.path.name)
        part = Part(text, tuple(self.tokens.ravel().tolist()), tuple(Window(row, self.n_ctx // 2) for row in table))
        digest = None if text.content is None else text_digest(text.content)
        return question([part], [digest], how, options, [self._note(bos_id)])

    def _note(self, bos_id: int | None) -> str:
        bos = "no begin-of-text token" if bos_id is None else f"token {bos_id} first in each chunk"
        return (
            f"the reference is llama-perplexity's 16-bit log-probabilities, {bos}: tokens 16 nats below the likeliest count as "
            "that, so reverse KLD is a lower bound; tensors, layers and config are not compared"
        )

    def _check(self, texts: Sequence[Text], options: ValidateOptions) -> None:
        if options.protocol not in (None, "llamacpp"):
            raise UsageError(
                f"--protocol {options.protocol}: {self.path} holds what protocol llamacpp scores, no other"
            )
        if options.n_ctx not in (None, self.n_ctx):
            raise UsageError(f"--ctx {options.n_ctx}: {self.path} was made with -c {self.n_ctx}: leave --ctx out")
        if options.stride is not None:
            raise UsageError(f"--stride {options.stride}: windows of protocol llamacpp do not overlap")
        n_chunks = len(self.tokens)
        if options.chunks is not None and not 1 <= options.chunks <= n_chunks:
            raise UsageError(f"--chunks {options.chunks}: {self.path} holds {n_chunks}: give at most so many")
        if len(texts) > 1 or any(text.content is None for text in texts):
            raise UsageError(f"{self.path}: has token ids of one text: give that text, or none")

    def speaker(self, _asked: Question, _device: torch.device) -> LlamaBase:
        """Itself: log-probabilities are read, not computed."""
        return self

    def odds(self, window: int, targets: Tensor) -> RecordedOdds:
        """As `head.Speaker.odds`."""
        return RecordedOdds(targets, f"{self.path}: chunk {window}")

    def slice(self, start: int, stop: int) -> Slice:
        """As `head.Speaker.slice`: log-probabilities of tokens [start, stop), read for one window at a time."""
        return lambda window, first, n: self._read(window, first - self.n_ctx // 2, n, start, stop)

    def _read(self, window: int, first: int, n: int, start: int, stop: int) -> Tensor:
        """float64[n, stop - start] of scored positions [first, first + n) of a chunk."""
        codes = np.empty((n, stop - start), "<u2")
        for place in range(n):
            offset = self._offset(window, first + place) + ROW_HEADER + 2 * start
            self.file.read_into(codes[place].view(np.uint8), offset)
        scales = self._row_headers(window)[first : first + n]
        return torch.from_numpy(codes.astype(np.float64)) * scales[:, :1] + scales[:, 1:]

    def _row_headers(self, window: int) -> Tensor:
        """(scale, min) float64[n_scored, 2] of a chunk; FormatError where they cannot be."""
        if window not in self._scales:
            rows = np.empty((self.n_scored, 2), "<f4")
            for place in range(self.n_scored):
                self.file.read_into(rows[place].view(np.uint8), self._offset(window, place))
            scale, low = rows.astype(np.float64).T
            sound = np.isfinite(scale) & np.isfinite(low) & (scale >= 0)
            sound &= np.where(sound, low + 65535 * scale, 0) <= SLACK
            if not sound.all():
                place = int(np.flatnonzero(~sound)[0])
                raise FormatError(
                    f"{self.path}: chunk {window}: scored position {place}, byte {self._offset(window, place)}: scale "
                    f"{scale[place]:g} and min {low[place]:g} give no log-probabilities: the file is damaged, make it again"
                )
            self._scales[window] = torch.from_numpy(np.stack((scale, low), axis=1))
        return self._scales[window]

    def _offset(self, window: int, place: int) -> int:
        return HEADER + self.tokens.nbytes + (window * self.n_scored + place) * _row_nbytes(self.n_tokens)

    def problems(self, candidate: Subject) -> tuple[str, ...]:
        """A vocabulary of another size, a tensor that the candidate's own config wants and that is not there."""
        try:
            replay = Replay(candidate.model.config)
            tensors = as_modules(candidate.model.tensors, replay.shapes)
            check_tensors(candidate.path, replace(candidate.model, tensors=tensors), replay)
        except ModelError as error:
            return (str(error),)
        rows = tensors[replay.head_name].shape[0]
        if rows != self.n_tokens:
            return (f"{replay.head_name} has {rows} rows, the vocabulary of {self.path.name} {self.n_tokens} tokens",)
        return ()

    def same_dtype(self, _candidate: Subject) -> bool:
        """Never: what the reference was stored as is not in the file, and its rounding is no candidate's fault."""
        return False

    def config_gate(self, _replay: Replay) -> Gate:
        """Nothing is known of the reference's config."""
        return not_measured("config", f"{self.path.name} does not say what the reference computes with")

    def check(self, _asked: Question, _scores: Sequence[TokenScores]) -> None:
        """Nothing more: `odds.RecordedOdds` looks at every position."""

    def tokenizer_gates(self, candidate: Subject, asked: Question) -> list[Gate]:
        """The same ids of the text, as far as the file goes, where the text was given."""
        theirs, part = candidate.model.tokenizer, asked.parts[0]
        if theirs is None:
            return []
        if part.text.content is None:
            return [not_measured("tokenizer", f"the text itself is not in {self.path.name}; give --text")]
        return [tokenizer_gate(part.ids, encode(theirs, part.text.content)[: len(part.ids)])]


def open_llama_base(path: Path) -> LlamaBase:
    """Header and tokens of a base file. FormatError where it is malformed, cut, or longer than it says."""
    file = SourceFile(path)
    if file.nbytes < HEADER:
        raise FormatError(f"{path}: is {file.nbytes} bytes long, its header alone takes {HEADER}: make it again")
    header = file.read(0, HEADER)
    if not header.startswith(MAGIC):
        raise FormatError(f"{path}: begins with {quoted(header[:8])}, wanted {MAGIC!r}")
    n_ctx, n_vocab, n_chunk = (int.from_bytes(header[at : at + 4], "little", signed=True) for at in (8, 12, 16))
    if n_ctx < 4 or n_vocab < 2 or n_chunk < 1:
        raise FormatError(
            f"{path}: byte 8: n_ctx {n_ctx}, n_vocab {n_vocab}, n_chunk {n_chunk}; wanted at least 4, 2 and 1"
        )
    of_chunk = (n_ctx - 1 - n_ctx // 2) * _row_nbytes(n_vocab)
    wanted = HEADER + 4 * n_ctx * n_chunk + n_chunk * of_chunk
    if file.nbytes != wanted:
        whole = max(0, file.nbytes - HEADER - 4 * n_ctx * n_chunk) // of_chunk
        held = f"it holds {whole} whole chunks of {n_chunk}" if file.nbytes < wanted else "bytes trail"
        raise FormatError(
            f"{path}: is {file.nbytes} bytes long, {n_chunk} chunks of n_ctx {n_ctx} and n_vocab {n_vocab} take {wanted}: "
            f"{held}; make it again"
        )
    tokens = np.frombuffer(file.read(HEADER, 4 * n_ctx * n_chunk), "<i4").reshape(n_chunk, n_ctx)
    outside = np.argwhere((tokens < 0) | (tokens >= n_vocab))
    if len(outside):
        chunk, place = (int(i) for i in outside[0])
        raise FormatError(
            f"{path}: token {place} of chunk {chunk} is {tokens[chunk, place]}, wanted 0 to {n_vocab - 1}, the vocabulary"
        )
    return LlamaBase(path, file, n_ctx, n_vocab, tokens)


def _row_nbytes(n_vocab: int) -> int:
    return ROW_HEADER + 2 * (n_vocab + n_vocab % 2)


def _bos_id(first: int, candidates: Sequence[Subject]) -> int | None:
    """The file's very first token, where that is what a candidate's vocabulary begins every text with."""
    for candidate in candidates:
        tokenizer = candidate.model.tokenizer
        if tokenizer is None:
            begins = candidate.model.config.get("bos_token_id") == first
        else:
            begins = tokenizer.add_bos and tokenizer.bos_id == first
        if begins:
            return first
    return None
