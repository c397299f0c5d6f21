"""What a vocabulary means, apart from any file format: two kinds.

    SentencePiece BPE   text -> " " before it, " " as U+2581 -> characters -> the adjacent pair whose piece scores highest
                        is merged, leftmost first, until none is left -> a character that is no piece becomes its UTF-8
                        bytes' pieces                                  LLaMA 1 and 2, Code Llama, Mistral, Gemma
    byte-level BPE      text -> words by a regular expression -> a word's bytes as 256 printable characters -> the adjacent
                        pair whose merge stands first in the list      Llama 3, Qwen, GPT-2, OPT, BLOOM

Anything else that a SentencePiece file can say (unigram, Unicode normalization, collapsed spaces) has no exact form in
GGUF's "llama" tokenizer or in tokenizer.json as smelt writes it, so it is refused when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from ..errors import ModelError
from ..formats.sentencepiece import (
    BPE,
    BYTE,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    byte_of,
    decode_model,
    encode_model,
)
from .tokenizer_roles import special_roles

SENTENCEPIECE = "sentencepiece"
BYTE_LEVEL = "byte-level BPE"
MODEL_FILE = "tokenizer.model"
TOKENIZER_JSON = "tokenizer.json"

Encoder = Callable[[str], list[int]]


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary and the files it came from.

    kind         SENTENCEPIECE or BYTE_LEVEL
    pieces       (text, score, type) by id; type as GGUF counts: 1 normal, 2 unknown, 3 control, 4 user, 5 unused, 6 byte.
                 A byte-level token's text is its bytes as characters (`tokenizer_bytes`), a special one's is as it is read
    special_ids  ids of the roles that GGUF names beyond BOS, EOS, UNK and PAD: eot, eom, fim_pre, fim_suf, fim_mid
    files        {name: content} byte for byte, such as tokenizer.model
    merges       byte-level: "left right", best first
    pre          byte-level: the name of the rules that cut a text into words; None where no known rules are the file's
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
    special_ids: Mapping[str, int] = field(default_factory=dict)
    merges: tuple[str, ...] = ()
    pre: str | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without BOS or EOS. A control piece's name in `text` is text; a user-defined one is cut out."""
        return self._encoder(text)

    def model_file(self) -> bytes:
        """tokenizer.model as Meta's releases have it: the original where there is one, else SentencePiece or ranks rebuilt.

        ModelError if the vocabulary has no such form.
        """
        if self.kind == SENTENCEPIECE:
            return self.sentencepiece()
        from .tokenizer_tiktoken import ranks_file

        return ranks_file(self)

    def sentencepiece(self) -> bytes:
        """SentencePiece's tokenizer.model: the original where there is one, else one made from the pieces.

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
    def _encoder(self) -> Encoder:
        """The original's own: SentencePiece for tokenizer.model, else tokenizers for tokenizer.json; else the pieces'."""
        if self.kind == SENTENCEPIECE and (MODEL_FILE in self.files or TOKENIZER_JSON not in self.files):
            return sentencepiece_encoder(replace(self, files=self._cutting_files()).sentencepiece())
        from .tokenizer_bpe import json_encoder, pieces_encoder

        original = self.files.get(TOKENIZER_JSON)
        return pieces_encoder(self) if original is None else json_encoder(original)

    def _cutting_files(self) -> Mapping[str, bytes]:
        """`files`, without a tokenizer.model that does not know all the pieces that are cut out of a text."""
        if MODEL_FILE in self.files and any(type_ == USER_DEFINED for _, _, type_ in self.pieces):
            known = {text for text, _, type_ in decode_model(self.files[MODEL_FILE]).pieces if type_ == USER_DEFINED}
            if not known.issuperset(text for text, _, type_ in self.pieces if type_ == USER_DEFINED):
                return {}
        return self.files


def sentencepiece_encoder(content: bytes) -> Encoder:
    """SentencePiece's own encoder of a tokenizer.model's bytes; ModelError where the library refuses them."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_proto=content)
    except (RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"{MODEL_FILE}: SentencePiece refuses it: {str(error).splitlines()[0]}") from None
    encode: Encoder = processor.encode
    return encode


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
        special_ids=special_roles(model.pieces),
    )
