"""Files beside the weights that smelt made itself, out of the model's own facts: they are made anew and never carried.

    smelt.made    {"made": [names], "files": {name of every side file: sha256}}     among what is said beside the weights

So Meta -> safetensors -> Meta ends in the folder that it began with, and GGUF -> safetensors -> GGUF in the file. Where any
of the files was edited, added or taken away, all are the user's and go along.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

MADE = "smelt.made"


def made_words(files: Mapping[str, bytes], came: Mapping[str, bytes]) -> dict[str, str]:
    """{MADE: what to write beside the weights} where some of `files` did not come with the model; else empty."""
    made = sorted(set(files) - set(came))
    return {MADE: json.dumps({"made": made, "files": _digests(files)}, sort_keys=True)} if made else {}


def without_made(files: Mapping[str, bytes], metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """`files` without those that `metadata` says were made, if all are as they were then."""
    try:
        told = json.loads(metadata.get(MADE, "{}"))
    except (ValueError, TypeError, RecursionError):
        told = {}
    made = told.get("made") if isinstance(told, dict) else None
    if not isinstance(made, list) or told.get("files") != _digests(files):
        return dict(files)
    return {name: content for name, content in files.items() if name not in made}


def _digests(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
