"""tiktoken's vocabulary file: a token and its rank a line. Llama 3 and later ship it as tokenizer.model.

    line = base64(token's bytes) | " " | rank, decimal | "\\n"          IQ== 0

The rank is both the token's id and its priority: of two adjacent parts, the pair whose joined bytes rank lowest is joined
first. Special tokens are not in the file. Source: openai/tiktoken, load.py (load_tiktoken_bpe).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence

from ..errors import FormatError, quoted

SIZE_CAP = 16 << 20  # bytes; Llama 4's 200,000 tokens take 3.6 MB
TOKEN_CAP = 512  # bytes; the longest in Llama 3 has 128. Recovering merges takes time with its square

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,7})\r?\n?")


def is_tiktoken(content: bytes) -> bool:
    """Whether `content` begins with a token and its rank."""
    return _LINE.match(content) is not None


def decode_ranks(content: bytes) -> list[bytes]:
    """The tokens by rank. FormatError for a malformed line, a token or rank that is there twice, a rank left out."""
    if len(content) > SIZE_CAP:
        raise FormatError(f"tokenizer.model: {len(content)} bytes, at most {SIZE_CAP} are read: is it the right file?")
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise FormatError(f"tokenizer.model: line {number}: {quoted(line)} is no base64 token and its rank")
        rank, token = int(match[2]), _token(match[1], number)
        if rank in tokens:
            raise FormatError(f"tokenizer.model: line {number}: rank {rank} is there twice")
        tokens[rank] = token
    if not tokens or max(tokens) != len(tokens) - 1:
        raise FormatError(f"tokenizer.model: its {len(tokens)} ranks are not 0 to {len(tokens) - 1}: the file was cut")
    if len(set(tokens.values())) != len(tokens):
        raise FormatError("tokenizer.model: a token is there twice, under two ranks")
    return [tokens[rank] for rank in range(len(tokens))]


def encode_ranks(tokens: Sequence[bytes]) -> bytes:
    """The file of `tokens`, whose ranks are their places, in order of rank: what Meta's releases hold byte for byte."""
    return b"".join(binascii.b2a_base64(token, newline=False) + b" %d\n" % i for i, token in enumerate(tokens))


def _token(text: bytes, number: int) -> bytes:
    try:
        token = binascii.a2b_base64(text)
    except binascii.Error as error:
        raise FormatError(f"tokenizer.model: line {number}: {quoted(text)} is not base64: {error}") from None
    if len(token) > TOKEN_CAP:
        raise FormatError(
            f"tokenizer.model: line {number}: a token of {len(token)} bytes, at most {TOKEN_CAP} are read: "
            "is it the right file?"
        )
    return token
