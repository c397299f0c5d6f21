"""What goes along with the weights: the files that came with a model, and those that are made where none came.

    Hugging Face folder   all that came; without tokenizer.json or tokenizer_config.json the tokenizer's are made
    Meta folder           all that came, listed in smelt.config.json; where none came and tokenizer.model cannot say all of a
                          vocabulary (a chat template, added tokens), what a Hugging Face folder would get
    GGUF                  all that came, under smelt.files.<name> (tokenizer.model under its own key)

So a file comes back byte for byte, whichever formats lie between.
"""

from __future__ import annotations

import json
from dataclasses import replace

from ..formats.tiktoken import is_tiktoken
from .model import Model
from .side_files import GENERATION_CONFIG, SIDE_FILES
from .tokenizer import MODEL_FILE, TOKENIZER_JSON, Tokenizer, read_sentencepiece
from .tokenizer_files import TOKENIZER_CONFIG, hugging_face_files
from .tokenizer_tiktoken import is_llama3_1, read_tiktoken

_SETTINGS = {TOKENIZER_JSON, TOKENIZER_CONFIG}


def came_along(model: Model) -> dict[str, bytes]:
    """{name: content} of the side files that came with the model, its tokenizer's included."""
    own = {} if model.tokenizer is None else model.tokenizer.files
    return {**{name: content for name, content in own.items() if name in SIDE_FILES}, **model.side_files}


def hugging_face_side_files(model: Model) -> dict[str, bytes]:
    """{name: content} for a Hugging Face folder. ModelError for a vocabulary that tokenizer.json cannot hold exactly."""
    files = came_along(model)
    if model.tokenizer is None or _SETTINGS & set(files) or _brought_vocabulary(model):
        return files
    if is_tiktoken(files.get(MODEL_FILE, b"")):  # tokenizer.json takes the place of Llama 3's ranks
        del files[MODEL_FILE]
    made = hugging_face_files(model.tokenizer, int(model.config["max_position_embeddings"]))
    return {GENERATION_CONFIG: _generation_config(model), **made, **files}


def meta_side_files(model: Model) -> dict[str, bytes]:
    """{name: content} beside params.json; empty where tokenizer.model says all that there is to say."""
    files = came_along(model)
    told = model.tokenizer is None or "max_position_embeddings" not in model.config or _SETTINGS & set(files)
    if not told and not _rereads(model, model.tokenizer):
        return hugging_face_side_files(model)
    return {} if list(files) == [MODEL_FILE] else files


def _brought_vocabulary(model: Model) -> bool:
    """Whether the model came from a Hugging Face folder with a vocabulary, whose files are what such a folder needs."""
    return model.source not in ("meta", "gguf") and not {MODEL_FILE, "vocab.json"}.isdisjoint(model.side_files)


def _rereads(model: Model, tokenizer: Tokenizer | None) -> bool:
    """Whether tokenizer.model alone gives the same tokenizer back."""
    if tokenizer is None:
        return True
    if model.source == "meta" and list(tokenizer.files) == [MODEL_FILE]:
        return True
    content = tokenizer.model_file()
    again = read_tiktoken(content, is_llama3_1(model.config)) if is_tiktoken(content) else read_sentencepiece(content)
    return replace(again, files={}) == replace(tokenizer, files={})


def _generation_config(model: Model) -> bytes:
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    facts = {key: model.config[key] for key in keys if model.config.get(key) is not None}
    return (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode()
