"""What a vocabulary means, apart from any file format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece vocabulary and the files it came from.

    pieces   (text, score, type) by id; type as GGUF counts: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte
    files    {name: content} byte for byte, such as tokenizer.model
    """

    kind: str
    pieces: tuple[tuple[str, float, int], ...]
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    pad_id: int | None = None
    add_bos: bool = True
    add_eos: bool = False
    add_space_prefix: bool = True
    chat_template: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS."""
        raise NotImplementedError
