"""What a user may say about a source that its files leave out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OpenOptions:
    """Facts by hand; each wins over what the files say.

    context_length  tokens the model was trained on; rope_theta  base of the rotary frequencies
    tokenizer       the tokenizer.model or tokenizer.json to use; skip_tokenizer  convert the weights alone
    pre             the name of the rules by which a byte-level vocabulary cuts words
    kv_heads        key-value heads of the model, where a Meta folder's shards repeat them
    """

    context_length: int | None = None
    rope_theta: float | None = None
    tokenizer: Path | None = None
    skip_tokenizer: bool = False
    kv_heads: int | None = None
    pre: str | None = None
