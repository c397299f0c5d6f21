"""Tokenizer -> the files of a Hugging Face folder that hold it: the originals, or made and proven.

    tokenizer.json          by the vocabulary's kind          tokenizer_config.json  special_tokens_map.json
    tokenizer.model         beside a SentencePiece vocabulary

Source: transformers (tokenizer_config.json and its keys).
"""

from __future__ import annotations

from typing import Any

from ..formats.sentencepiece import CONTROL, UNKNOWN
from .tokenizer import MODEL_FILE, SENTENCEPIECE, TOKENIZER_JSON, Tokenizer
from .tokenizer_bpe import byte_level_json, json_encoder
from .tokenizer_json import added_token, dump, tokenizer_json
from .tokenizer_proof import prove

TOKENIZER_CONFIG = "tokenizer_config.json"


def hugging_face_files(tokenizer: Tokenizer, model_max_length: int) -> dict[str, bytes]:
    """{file name: content} of everything AutoTokenizer wants, and a SentencePiece vocabulary's tokenizer.model.

    The originals where the tokenizer came from such a folder. Else made; ModelError for a vocabulary that tokenizer.json
    cannot hold exactly, or whose ids it changes.
    """
    if TOKENIZER_JSON in tokenizer.files or TOKENIZER_CONFIG in tokenizer.files:
        return dict(tokenizer.files)
    is_sentencepiece = tokenizer.kind == SENTENCEPIECE
    content = tokenizer_json(tokenizer) if is_sentencepiece else byte_level_json(tokenizer)
    prove(tokenizer, json_encoder(content), TOKENIZER_JSON)
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "unk": tokenizer.unk_id, "pad": tokenizer.pad_id}
    names = {f"{role}_token": tokenizer.pieces[i][0] for role, i in roles.items() if i is not None}
    files = {
        TOKENIZER_JSON: content,
        TOKENIZER_CONFIG: dump(_settings(tokenizer, names, model_max_length)),
        "special_tokens_map.json": dump(names),
    }
    return {**files, MODEL_FILE: tokenizer.sentencepiece()} if is_sentencepiece else files


def _settings(tokenizer: Tokenizer, names: dict[str, str], model_max_length: int) -> dict[str, Any]:
    specials = {i: text for i, (text, _, type_) in enumerate(tokenizer.pieces) if type_ in (UNKNOWN, CONTROL)}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "added_tokens_decoder": {
            str(i): {key: value for key, value in added_token(i, text, special=True).items() if key != "id"}
            for i, text in specials.items()
        },
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    return settings
