"""What a vocabulary means, apart from any file format. SentencePiece BPE with byte fallback, as LLaMA 1 and 2 have it.

    text -> " " before it, " " as U+2581 -> characters -> the adjacent pair whose piece scores highest is merged, leftmost
    first, until none is left -> a character that is no piece becomes its UTF-8 bytes' pieces

Anything else that a SentencePiece file can say (unigram, Unicode normalization, collapsed spaces) has no exact form in
GGUF's "llama" tokenizer or in tokenizer.json as smelt writes it, so it is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import FormatError, InputError, ModelError
from ..formats.sentencepiece import BPE, BYTE, Piece, SentencePieceModel, byte_of, decode_model, encode_model

SENTENCEPIECE = "sentencepiece"  # the only kind there is today
MODEL_FILE = "tokenizer.model"


@dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece vocabulary and the files it came from.

    pieces   (text, score, type) by id; type as GGUF counts: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte
    files    {name: content} byte for byte, such as tokenizer.model
    """

    kind: str
    pieces: tuple[Piece, ...]
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
        """Token ids of `text`, without BOS or EOS. A special piece's name in `text` is text."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def sentencepiece(self) -> bytes:
        """tokenizer.model: the original where there is one, else one made from the pieces.

        ModelError if the pieces make none that SentencePiece opens.
        """
        original = self.files.get(MODEL_FILE)
        if original is not None:
            return original
        n_bytes = len({byte_of(text) for text, _, type_ in self.pieces if type_ == BYTE})
        content = encode_model(
            SentencePieceModel(
                self.pieces,
                byte_fallback=n_bytes == 256,
                unk_id=self.unk_id,
                bos_id=self.bos_id,
                eos_id=self.eos_id,
                pad_id=self.pad_id,
                add_dummy_prefix=self.add_space_prefix,
            )
        )
        decode_model(content)
        return content

    @cached_property
    def _processor(self) -> Any:
        """SentencePiece's own encoder."""
        from sentencepiece import SentencePieceProcessor

        try:
            return SentencePieceProcessor(model_proto=self.sentencepiece())
        except (RuntimeError, OSError, ValueError) as error:
            raise ModelError(f"{MODEL_FILE}: SentencePiece refuses it: {str(error).splitlines()[0]}") from None


def open_sentencepiece(path: Path) -> Tokenizer:
    """The tokenizer.model at `path`; its errors name it."""
    try:
        return read_sentencepiece(path.read_bytes())
    except (FormatError, ModelError) as error:
        raise type(error)(f"{path}: {str(error).removeprefix(f'{MODEL_FILE}: ')}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_sentencepiece(content: bytes) -> Tokenizer:
    """A tokenizer.model's bytes. FormatError if malformed; ModelError if it is not BPE without normalization."""
    model = decode_model(content)
    refused = [
        reason
        for is_so, reason in (
            (model.model_type != BPE, "is not BPE (unigram, word or character model)"),
            (bool(model.charsmap), f"normalizes Unicode ({model.normalizer})"),
            (model.remove_extra_whitespaces, "removes extra whitespace"),
            (not model.escape_whitespaces, "does not escape whitespace"),
            (model.whitespace_as_suffix, "puts whitespace at the end of pieces"),
        )
        if is_so
    ]
    if refused:
        raise ModelError(
            f"{MODEL_FILE}: {', '.join(refused)}: smelt keeps LLaMA's kind of vocabulary only; --skip-tokenizer leaves it out"
        )
    return Tokenizer(
        SENTENCEPIECE,
        model.pieces,
        bos_id=model.bos_id,
        eos_id=model.eos_id,
        unk_id=model.unk_id,
        pad_id=model.pad_id,
        add_bos=model.bos_id is not None,
        add_space_prefix=model.add_dummy_prefix,
        files={MODEL_FILE: content},
    )
