"""A reference that was run once and kept: its final hidden states and its head, enough to judge any later candidate.

    __metadata__    "smelt.reference": JSON of the facts (below)
    hidden          F32 [positions, d]    after the last layer, of the scored positions of every window, one after another
    nll             F64 [windows]         mean nll of each window, so that a damaged file is found out
    ids.{k}         I32 [n]               the token ids of text k, all of them
    head.{tensor}   what the head takes: output matrix and bias, final norm, learned positions, as stored; rows of a block
                    type as U8 [rows, bytes]

    facts   {version, smelt, reference {path, files [{file, bytes, header_sha256}]}, protocol {name, n_ctx, stride},
             texts [{name, chunks, text_sha256, token_ids_sha256, perplexity}], noise_floor, tokenizer,
             model {architecture, config, source, layer_returns, tensors {name: [shape, dtype]}}}
            a tensor that a third party's scheme packs: [shape, dtype that it is read as, scheme, bytes in the files]

What a candidate's scores are compared with is computed again from these by the same code, so every drift is bit for bit
what the reference itself gives. The layers' weights and outputs are not kept: comparing those needs the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..convert.model import Model
from ..errors import FormatError, UsageError, quoted
from ..formats.checkpoint import StoredTensor
from .drift import TokenScores
from .gates import Gate, config_gate, not_measured, special_tokens_gate, tokenizer_gate
from .head import Head
from .options import ValidateOptions
from .protocols import Protocol, encode, text_digest, token_digest
from .question import Part, Question, Subject, cut, question
from .replay import Replay, arithmetic_facts
from .report import NoiseFloor, Reference
from .stream import stored_weights
from .texts import Text
from .weights import problems, same_dtype, with_head

FACTS = "smelt.reference"
VERSION = 1
HIDDEN, NLL, IDS, HEAD = "hidden", "nll", "ids.", "head."
TOKENIZER_FACTS = ("kind", "bos_id", "eos_id", "unk_id", "pad_id", "add_bos", "add_eos", "chat_template")
NLL_SLACK = 1e-4  # nats a window's mean may differ from the saved one by another version of the libraries


@dataclass(frozen=True)
class SavedText:
    """One text of a saved reference; `chunks` windows of it were run."""

    name: str
    ids: tuple[int, ...]
    chunks: int
    text_sha256: str | None
    token_ids_sha256: str


@dataclass(frozen=True)
class Baseline:
    """An open saved reference. `model` is its outline: of its tensors only what the head takes can be read.

    saved_from  the path that the reference had, and `saved_by` the version of smelt that ran it
    """

    path: Path
    model: Model
    protocol: Protocol
    texts: tuple[SavedText, ...]
    noise_floor: NoiseFloor | None
    saved_from: str
    saved_by: str
    layer_returns: int | None
    stored: Mapping[str, StoredTensor]

    @cached_property
    def _replay(self) -> Replay:
        """For its facts: no tensor is loaded. ModelError where transformers cannot build it."""
        return Replay(self.model.config)

    def _network(self, device: torch.device) -> Replay:
        """What its head needs, loaded; no layer has weights."""
        found = Replay(self.model.config, device)
        found.returns = self.layer_returns
        for name in (*found.outer_names, found.head_name, found.head_bias_name):
            if name is not None and not self._holds(name, found.shapes[name]):
                raise FormatError(f"{self.path}: {name} is not in it, or not of shape {list(found.shapes[name])}")
        width = found.network.config.hidden_size
        if self.stored[HIDDEN].shape[1] != width:
            raise FormatError(f"{self.path}: {HIDDEN} has {self.stored[HIDDEN].shape[1]} columns, the model {width}")
        found.load_outer(stored_weights(self.model)(found.outer_names)())
        return found

    def _holds(self, name: str, shape: tuple[int, ...]) -> bool:
        return f"{HEAD}{name}" in self.stored and self.model.tensors[name].shape == shape

    @property
    def entry(self) -> Reference:
        """As it stands in a report, perplexities aside."""
        nbytes = sum(tensor.nbytes for tensor in self.model.tensors.values())
        return Reference(str(self.path), self.model.bits_per_weight, self.model.parameters, nbytes, ())

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every text with all the windows that were run. FormatError where ids or states are not those."""
        found = tuple(self._part(text) for text in self.texts)
        rows = sum(len(window.scored[1]) for part in found for window in part.windows)
        windows = sum(len(part.windows) for part in found)
        if self.stored[HIDDEN].shape[0] != rows or self.stored[NLL].shape != (windows,):
            raise FormatError(
                f"{self.path}: holds {self.stored[HIDDEN].shape[0]} positions of {self.stored[NLL].shape} windows, its texts "
                f"have {rows} of {windows}"
            )
        return found

    def _part(self, saved: SavedText) -> Part:
        subject = Subject(str(self.path), self.model)
        part = cut(subject, Text(saved.name, None, saved.ids), self.protocol, saved.chunks)
        if len(part.windows) != saved.chunks or token_digest(list(part.windows)) != saved.token_ids_sha256:
            raise FormatError(f"{self.path}: the token ids of {quoted(saved.name)} are not the ones that were scored")
        return part

    def ask(self, texts: Sequence[Text], _candidates: Sequence[Subject], options: ValidateOptions) -> Question:
        """The question that was saved, or the first chunks of it. UsageError for what asks another one.

        `texts` need not be given; one that is must be a text it was saved on, and candidates' tokenizers are asked about it.
        """
        self._check(options)
        given = self._given(texts)
        parts = [
            replace(part, text=given.get(part.text.name, part.text), windows=part.windows[: options.chunks])
            for part in self.parts
        ]
        note = f"the reference was saved from {self.saved_from} by smelt {self.saved_by}: tensors and layers are not compared"
        return question(parts, [text.text_sha256 for text in self.texts], self.protocol, options, [note])

    def _check(self, options: ValidateOptions) -> None:
        how, most = self.protocol, max(text.chunks for text in self.texts)
        for flag, asked, held in (
            ("--protocol", options.protocol, how.name),
            ("--ctx", options.n_ctx, how.n_ctx),
            ("--stride", options.stride, how.stride),
        ):
            if asked is not None and asked != held:
                raise UsageError(
                    f"{flag} {asked}: {self.path} was saved with {held}: leave {flag} out, or save it anew"
                )
        if options.chunks is not None and not 1 <= options.chunks <= most:
            raise UsageError(
                f"--chunks {options.chunks}: {self.path} holds {most}: give at most so many, or save it anew"
            )

    def _given(self, texts: Sequence[Text]) -> dict[str, Text]:
        """{name that the saved text has: the text given}, found by content."""
        found = {}
        for text in texts:
            digest = None if text.content is None else text_digest(text.content)
            match = next(
                (s.name for s in self.texts if (s.ids == text.ids if digest is None else s.text_sha256 == digest)), None
            )
            if match is None:
                raise UsageError(
                    f"{text.name}: is not what {self.path} was saved on ({', '.join(t.name for t in self.texts)}): leave it "
                    "out, or save the reference on it"
                )
            found[match] = replace(text, name=match)
        return found

    def speaker(self, asked: Question, device: torch.device) -> Head:
        """Its head, over the hidden states in the file."""
        stored = self.stored[HIDDEN]
        every = [window for part in self.parts for window in part.windows]
        rows = list(accumulate((len(window.scored[1]) for window in every), initial=0))
        kept = self._kept(asked)

        def hidden(window: int, first: int, n: int) -> Tensor:
            start = rows[kept[window]] + first - every[kept[window]].first
            return torch.from_numpy(stored.read(start, start + n).view("<f4").astype(np.float32, copy=False))[None]

        return Head(self._network(device), self.model.tensors, hidden)

    def _kept(self, asked: Question) -> list[int]:
        """For each window that is asked its place among those of the file."""
        found: list[int] = []
        start = 0
        for whole, part in zip(self.parts, asked.parts, strict=True):
            found += range(start, start + len(part.windows))
            start += len(whole.windows)
        return found

    def check(self, asked: Question, scores: Sequence[TokenScores]) -> None:
        """FormatError where a window's mean nll is not the one that was saved: a damaged file gives another."""
        saved = self.stored[NLL].read(0, 1).view("<f8")[0]
        for place, score in zip(self._kept(asked), scores, strict=True):
            found = float(score.nll.mean())
            if not abs(found - saved[place]) <= NLL_SLACK:
                raise FormatError(
                    f"{self.path}: window {place} gives a mean nll of {found:.6f}, {saved[place]:.6f} was saved: the file is "
                    "damaged, or the libraries compute otherwise now: save it again"
                )

    def problems(self, candidate: Subject) -> tuple[str, ...]:
        """Tensors that are missing, misshapen or not the reference's."""
        return problems(with_head(self.model), with_head(candidate.model))

    def same_dtype(self, candidate: Subject) -> bool:
        """True where every matrix of the candidate is stored as the reference's was."""
        return same_dtype(self.model, candidate.model)

    def config_gate(self, replay: Replay) -> Gate:
        """The same facts that the forward pass computes with."""
        return config_gate(arithmetic_facts(self._replay), arithmetic_facts(replay))

    def tokenizer_gates(self, candidate: Subject, asked: Question) -> list[Gate]:
        """The same ids of each text that was given, the same special tokens, where there are tokenizers to ask."""
        ours, theirs = self.model.tokenizer, candidate.model.tokenizer
        if theirs is None:
            return []
        gates = []
        for part in asked.parts:
            name = part.text.name if len(asked.parts) > 1 else None
            if part.text.content is not None:
                gates.append(tokenizer_gate(part.ids, encode(theirs, part.text.content), name))
            else:
                gates.append(
                    not_measured("tokenizer", "the text itself is not in the saved reference; give --text", name)
                )
        return gates if ours is None else [*gates, special_tokens_gate(ours, theirs)]
