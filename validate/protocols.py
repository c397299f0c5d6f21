"""What is scored: how a text becomes windows of tokens, and which of their tokens count.

    llamacpp   |BOS t t t ... t | T T T ... T|BOS t t ...   windows of 512, BOS replaces each window's first token;
               '--- context ---''-- scored --'              logits of positions 256..510 predict 255 tokens a window
    gptq       |BOS T T T ............... T T| t T T ...    windows of 2048, BOS once at the very start, all 2047 scored
    strided    |BOS T T T T T T|                            windows of 1024 that start 512 apart; each scores the tokens
                     |- - - T T T|                          that no window before it did, the shorter last one too
                           |- - - T|

The protocol changes the number: LLaMA-2-7B has perplexity 5.79 under the first and 5.47 under the second on the same text.
Sources: llama.cpp, tools/perplexity; GPTQ (arXiv 2210.17323), its evaluation code; transformers' documentation,
"Perplexity of fixed-length models".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..convert.tokenizer import Tokenizer
from ..errors import InputError, UsageError

Tokens = NDArray[np.int64]
Bos = Literal["every window", "once"]


@dataclass(frozen=True)
class Protocol:
    """A way to measure; two numbers compare only under the same one.

    n_ctx   tokens in a window
    bos     where the begin-of-text token stands, for tokenizers that add one
    first   the first position whose logits are scored; they predict the token after it
    stride  tokens between the starts of two windows; where they overlap, only what is new is scored
    """

    name: str
    n_ctx: int
    bos: Bos
    first: int
    stride: int


@dataclass(frozen=True)
class Window:
    """int64[n] tokens, of which those after position `first` are scored."""

    tokens: Tokens
    first: int

    @property
    def scored(self) -> tuple[int, Tokens]:
        """(first position whose logits count, the tokens that are predicted from there on)."""
        return self.first, self.tokens[self.first + 1 :]


def _llamacpp(n_ctx: int, _stride: int | None) -> Protocol:
    return Protocol("llamacpp", n_ctx, "every window", n_ctx // 2, n_ctx)


def _gptq(n_ctx: int, _stride: int | None) -> Protocol:
    return Protocol("gptq", n_ctx, "once", 0, n_ctx)


def _strided(n_ctx: int, stride: int | None) -> Protocol:
    return Protocol("strided", n_ctx, "once", 0, n_ctx // 2 if stride is None else stride)


# name: (of a window's length and a stride, its usual length)
PROTOCOLS = {"llamacpp": (_llamacpp, 512), "gptq": (_gptq, 2048), "strided": (_strided, 1024)}
DEFAULT = "llamacpp"


def protocol(name: str, n_ctx: int | None = None, stride: int | None = None) -> Protocol:
    """The protocol of this name, with windows of `n_ctx` tokens in place of its own; UsageError for an unknown one."""
    if name not in PROTOCOLS:
        raise UsageError(f"protocol {name!r} is unknown; known: {', '.join(PROTOCOLS)}")
    of, usual = PROTOCOLS[name]
    length = usual if n_ctx is None else n_ctx
    if length < 4:
        raise UsageError(f"windows of {length} tokens leave nothing to score; give at least 4")
    if stride is not None and name != "strided":
        raise UsageError(f"--stride {stride}: windows of protocol {name} do not overlap; say --protocol strided")
    if stride is not None and not 1 <= stride <= length:
        raise UsageError(f"--stride {stride}: wanted 1 to {length}, the window's length")
    return of(length, stride)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's token ids, with BOS in front once where the tokenizer adds it."""
    ids = tokenizer.encode(text)
    return [tokenizer.bos_id, *ids] if tokenizer.add_bos and tokenizer.bos_id is not None else ids


def windows(ids: list[int], tokenizer: Tokenizer, protocol: Protocol, limit: int | None = None) -> list[Window]:
    """Cut `encode`d ids into windows, at most `limit`.

    What is left over after the last whole window is not scored, but for overlapping windows, whose last one may be shorter.
    InputError where there is not one window's worth of tokens.
    """
    n_ctx = protocol.n_ctx
    if len(ids) < n_ctx:
        raise InputError(
            f"the text has {len(ids)} tokens, protocol {protocol.name} wants windows of {n_ctx}: "
            "give a longer text, or shorter windows with --ctx"
        )
    if limit is not None and limit < 1:
        raise UsageError(f"{limit} chunks leave nothing to score; give at least 1")
    if protocol.name == "strided":
        return _overlapping(ids, protocol, limit)
    count = len(ids) // n_ctx
    count = count if limit is None else min(count, limit)
    table = np.array(ids[: count * n_ctx], np.int64).reshape(count, n_ctx)
    if protocol.bos == "every window" and tokenizer.add_bos and tokenizer.bos_id is not None:
        table[:, 0] = tokenizer.bos_id
    return [Window(row, protocol.first) for row in table]


def _overlapping(ids: list[int], protocol: Protocol, limit: int | None) -> list[Window]:
    """Every token but the very first is scored once, by the first window that reaches it."""
    tokens = np.array(ids, np.int64)
    found = []
    reached = 1
    for start in range(0, len(ids), protocol.stride):
        stop = min(start + protocol.n_ctx, len(ids))
        found.append(Window(tokens[start:stop], max(0, reached - 1 - start)))
        reached = stop
        if stop == len(ids) or len(found) == limit:
            break
    return found


def text_digest(text: str) -> str:
    """SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def token_digest(cut: list[Window]) -> str:
    """SHA-256 of every window's token ids as little-endian int32: equal for equal questions."""
    digest = hashlib.sha256()
    for window in cut:
        digest.update(window.tokens.astype("<i4").tobytes())
    return digest.hexdigest()
