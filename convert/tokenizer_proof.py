"""The same ids before and after: each vocabulary that is written anew encodes a set of hard texts as its source does.

The reference is the source's own definition: SentencePiece, the original tokenizer.json in the tokenizers library, or the
ranks of a tiktoken file joined by the plain rule. The candidate is what will be written, read back by its own words.
Each control and user-defined token's name is among the texts, alone and inside others (at most `MAX_NAMES` of a kind).
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import ModelError, quoted
from ..formats.sentencepiece import CONTROL, USER_DEFINED
from ..formats.tiktoken import is_tiktoken
from .tokenizer import BYTE_LEVEL, MODEL_FILE, Encoder, Tokenizer

MAX_NAMES = 24
SHOWN = 24  # ids of each list in a message

_CODE = 'def f(x):\n    if x:\n\t\treturn {"a": [1, 2.5e-3, 0xFF]}  # no\n\n\n        pass\r\n'
_MIXED = "I'LL say: they've 12345678 things -- DON'T they?\u3000\u00a0 \u2028x"

HARD_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n",
    "\t\t x",
    "  two in front, two behind  ",
    "\x00a\x00\x01\x1b\x7f",
    "a\r\nb\r\n\r\nc\n \n  \n\n",
    _CODE,
    _MIXED,
    "e\u0301 a\u0308\u0323 n\u0303 \u1100\u1161\u11a8 \u0915\u094d\u0937\u093f \u0e01\u0e33",
    "\u00e9\u00e4\u00f1 na\u00efve Stra\u00dfe \u0130\u0131 \ufb01 \u212b",
    "\u0394\u03bf\u03ba\u03b9\u03bc\u03ae \u041f\u0440\u0438\u0432\u0435\u0442",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd\u2764\ufe0f",
    "\u65e5\u672c\u8a9e\u306e\u6587\u3001\u4e2d\u6587\u6587\u672c\uff0c\ud55c\uad6d\uc5b4\u3002\U00020000\uff21\uff11",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627\u060c \u0628\u0643\u0645\u061f",
    "\u06f1\u06f2\u06f3 \u200f\u202bx\u202c",
    "\ufeffx\u200b\u200c\u00ad\ufffd\U0010ffff\ue000",
    "\u2581 \u2581\u2581x",
    "https://example.org/a_b-c?d=%20&e=f#g <b>bold</b> $x^2$ {{y}} ``` --- === ...",
    "1 12 123 1234 12345678901234567890 \u0661\u0662\u0663 \u00bd \u2167 1,000.00",
    "camelCaseHTTPServer SCREAMING_SNAKE 'quoted' \"text\" it's IT'S We'd",
    *(" " * n for n in (2, 3, 7, 16, 33, 70)),
    *("x" + " " * n + "return" for n in (1, 2, 4, 5, 31)),
    *("\n" * n + "x" for n in (2, 3, 9)),
    "=" * 79,
    "a" * 60,
    "<s></s><unk><pad>[INST] <|endoftext|><|im_start|>user\n<|eot_id|><0x0A>",
)


def prove(source: Tokenizer, candidate: Encoder, name: str) -> None:
    """ModelError naming the first text whose ids `candidate`, read back from what will be `name`, changes."""
    reference = reference_encoder(source)
    for text in texts_of(source):
        wanted, got = reference(text), candidate(text)
        if wanted != got:
            first = next(
                (i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), len(wanted)
            )
            raise ModelError(
                f"{name} would change the ids of {quoted(text)}: {_shown(wanted, first)} in the source, "
                f"{_shown(got, first)} in what would be written: convert the weights alone with --skip-tokenizer"
            )


def reference_encoder(source: Tokenizer) -> Encoder:
    """The encoder that defines a tokenizer: its original file's, independent of what smelt made of it."""
    content = source.files.get(MODEL_FILE, b"")
    if source.kind == BYTE_LEVEL and is_tiktoken(content):
        from .tokenizer_tiktoken import ranks_encoder

        return ranks_encoder(content)
    return source.encode


def texts_of(source: Tokenizer) -> Iterator[str]:
    """The hard texts, then those with the names of the tokenizer's own special tokens."""
    yield from HARD_TEXTS
    for wanted in (CONTROL, USER_DEFINED):
        names = [text for text, _, type_ in source.pieces if type_ == wanted]
        few = names if len(names) <= MAX_NAMES else names[: MAX_NAMES // 2] + names[-MAX_NAMES // 2 :]
        for name in few:
            yield f"{name}x {name} y{name}{name}"


def _shown(ids: list[int], first: int) -> str:
    """Ids around the first that differs."""
    begin = max(0, first - SHOWN // 2)
    part = ids[begin : begin + SHOWN]
    return f"{'... ' if begin else ''}{part}{' ...' if begin + SHOWN < len(ids) else ''}"
