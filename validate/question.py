"""The question: the texts as windows of token ids, cut by the protocol, and what a report says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..convert.model import Model
from ..convert.tokenizer import Tokenizer
from ..errors import InputError, UsageError
from .options import ValidateOptions
from .protocols import DEFAULT, Protocol, Window, encode, protocol, text_digest, token_digest, windows
from .report import Asked, Evaluation
from .texts import Text

FEW_CHUNKS = 8

Each = TypeVar("Each")


@dataclass(frozen=True)
class Subject:
    """A model and the name that it has in the report."""

    path: str
    model: Model


@dataclass(frozen=True)
class Part:
    """One text: its ids by the reference's tokenizer, and the windows that they were cut into."""

    text: Text
    ids: tuple[int, ...]
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Question:
    """Every window of every text, in order."""

    parts: tuple[Part, ...]
    evaluation: Evaluation

    @property
    def windows(self) -> list[Window]:
        """Of all texts, one after another."""
        return [window for part in self.parts for window in part.windows]

    def by_text(self, found: Sequence[Each]) -> list[Sequence[Each]]:
        """What was found for each window, cut into texts."""
        sliced, start = [], 0
        for part in self.parts:
            sliced.append(found[start : start + len(part.windows)])
            start += len(part.windows)
        return sliced


def ask(subject: Subject, texts: Sequence[Text], options: ValidateOptions) -> Question:
    """Cut the texts for `subject`. InputError for too short a text or a model without a tokenizer; UsageError for windows

    longer than the model was trained on, and for two texts of one name.
    """
    how = protocol(options.protocol or DEFAULT, options.n_ctx, options.stride)
    check_context(subject, how)
    names = [text.name for text in texts]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"{len(names)} texts by the names {', '.join(names)}: name at least one, each by its own name")
    parts = tuple(cut(subject, text, how, options.chunks) for text in texts)
    digests = [None if text.content is None else text_digest(text.content) for text in texts]
    return question(parts, digests, how, options)


def question(
    parts: Sequence[Part],
    digests: Sequence[str | None],
    how: Protocol,
    options: ValidateOptions,
    notes: Sequence[str] = (),
) -> Question:
    """Parts that are cut, with the digest of each one's text, and `notes` beside those on the number of chunks."""
    asked = tuple(
        Asked(
            part.text.name,
            len(part.windows),
            sum(len(window.scored[1]) for window in part.windows),
            digest,
            token_digest(list(part.windows)),
        )
        for part, digest in zip(parts, digests, strict=True)
    )
    told = (*_notes(asked), *notes)
    return Question(tuple(parts), Evaluation(how, asked, options.seed, options.resamples, told))


def cut(subject: Subject, text: Text, how: Protocol, chunks: int | None) -> Part:
    """One text's ids by the subject's tokenizer, and its windows, at most `chunks`. InputError where it is too short."""
    tokenizer = subject.model.tokenizer
    if text.ids is not None:
        tokenizer, ids = tokenizer or _NO_TOKENIZER, list(text.ids)
    elif tokenizer is None:
        raise InputError(f"{subject.path}: has no tokenizer, so a text cannot be scored; give one with --tokenizer")
    else:
        ids = encode(tokenizer, text.content or "")
    try:
        return Part(text, tuple(ids), tuple(windows(ids, tokenizer, how, chunks)))
    except InputError as error:
        raise InputError(f"{text.name}: {error}") from None


_NO_TOKENIZER = Tokenizer("none", (), bos_id=None, eos_id=None, unk_id=None, add_bos=False)


def _notes(asked: Sequence[Asked]) -> list[str]:
    notes = []
    for text in asked:
        of = f"{text.name}: " if len(asked) > 1 else ""
        if text.chunks == 1:
            notes.append(
                f"{of}one chunk gives no interval: the gates judge the measured values themselves; give a longer text"
            )
        elif text.chunks < FEW_CHUNKS:
            notes.append(
                f"{of}{text.chunks} chunks: intervals from fewer than {FEW_CHUNKS} are too narrow; give a longer text"
            )
    return notes


def check_context(subject: Subject, how: Protocol) -> None:
    """UsageError where the windows are longer than the subject was trained on."""
    trained = subject.model.config.get("max_position_embeddings")
    if isinstance(trained, int) and how.n_ctx > trained:
        raise UsageError(
            f"{subject.path}: protocol {how.name} wants windows of {how.n_ctx} tokens, the model was trained on {trained}: "
            f"give --ctx {trained} or fewer"
        )
