"""Small byte-level BPE vocabularies for tests, trained on the standard library's text by the tokenizers library.

trained_json("qwen2")   a tokenizer.json with those rules       trained_ranks()   a tiktoken file, as Llama 3's is made
"""

from __future__ import annotations

import argparse
import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from smelt.convert.tokenizer_bytes import bytes_of
from smelt.convert.tokenizer_pre import RULES, normalizer_json, pre_tokenizer_json
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

SOURCE = Path(argparse.__file__).parent
LINES = [
    line
    for name in ("argparse.py", "difflib.py", "html/entities.py", "encodings/cp1252.py")
    for line in (SOURCE / name).read_text(encoding="utf-8").splitlines()
]
UNICODE = "日本語の文章、中文文本。 Привет мир ‒ naïve Straße 🙂👍🏽 שלום مرحبا नमस्ते é à ñ 12345 — “x” …"


@cache
def trained_json(pre: str, n_tokens: int = 700) -> bytes:
    """A tokenizer.json of `n_tokens` merged tokens, then `<|end|>` (special) and `<tool>` (user-defined)."""
    rules = RULES[pre]
    frame: dict[str, Any] = json.loads(tokenizers.Tokenizer(BPE()).to_str())
    frame |= {"normalizer": normalizer_json(rules), "pre_tokenizer": pre_tokenizer_json(rules)}
    frame["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    frame["model"]["ignore_merges"] = rules.ignore_merges
    made = tokenizers.Tokenizer.from_str(json.dumps(frame))
    trainer = BpeTrainer(vocab_size=n_tokens, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator([*LINES, *[UNICODE] * 20], trainer)
    made.add_special_tokens(["<|end|>"])
    made.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    return str(made.to_str(pretty=True)).encode()


@cache
def trained_ranks(n_tokens: int = 700) -> bytes:
    """A tokenizer.model as Llama 3's: the tokens by id, which is the order that they were merged in."""
    vocab = json.loads(trained_json("llama-bpe", n_tokens))["model"]["vocab"]
    tokens = [bytes_of(text) for text, _ in sorted(vocab.items(), key=lambda item: item[1])]
    return b"".join(base64.b64encode(token or b"") + b" %d\n" % rank for rank, token in enumerate(tokens))
