"""Bytes as printable characters, and merges out of ranks: what every byte-level BPE vocabulary shares.

    byte 0x21..0x7E, 0xA1..0xAC, 0xAE..0xFF -> the character of that number
    the other 68 bytes, in order            -> U+0100, U+0101, ...                   " " is U+0120

Ranks say of every token when it is made; merges say of which two. The merges of a token are all its splits into two tokens,
in order of (rank of the left, rank of the right). Source: openai/gpt-2, encoder.py (bytes_to_unicode); openai/tiktoken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
TO_TEXT = {**{byte: chr(byte) for byte in _PRINTABLE}, **{byte: chr(0x100 + i) for i, byte in enumerate(_OTHERS)}}
ALPHABET = frozenset(TO_TEXT.values())

_TEXT_TABLE = {byte: ord(text) for byte, text in TO_TEXT.items()}
_BYTE_TABLE = {ord(text): byte for byte, text in TO_TEXT.items()}


def text_of(token: bytes) -> str:
    """Bytes as a token of tokenizer.json and GGUF spells them."""
    return token.decode("latin-1").translate(_TEXT_TABLE)


def bytes_of(text: str) -> bytes | None:
    """The bytes that a token's text stands for; None where a character stands for none."""
    try:
        return text.translate(_BYTE_TABLE).encode("latin-1") if ALPHABET.issuperset(text) else None
    except UnicodeEncodeError:
        return None


def merges_of_ranks(texts: Sequence[str]) -> list[str]:
    """The merges, "left right", of tokens whose ranks are their places. Time grows with the square of a token's length."""
    ranks = {text: rank for rank, text in enumerate(texts)}
    merges: list[str] = []
    for text in texts:
        if len(text) == 2:  # half of the work in less than half of the steps
            if text[0] in ranks and text[1] in ranks:
                merges.append(f"{text[0]} {text[1]}")
            continue
        splits = [
            (ranks[text[:cut]], ranks[text[cut:]], f"{text[:cut]} {text[cut:]}")
            for cut in range(1, len(text))
            if text[:cut] in ranks and text[cut:] in ranks
        ]
        merges += [merge for *_, merge in sorted(splits)]
    return merges


def encode_by_ranks(ranks: Mapping[bytes, int], word: bytes) -> list[int]:
    """A word's ids as tiktoken's definition has them: whole, or by joining the pair of lowest rank until there is none.

    Plain and slow on purpose: it is what the merges are compared with. `ranks` must hold all single bytes.
    """
    if word in ranks:
        return [ranks[word]]
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(joined)
        if best == len(ranks):
            break
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]
