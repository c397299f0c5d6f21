"""Model -> metaseq's folder of OPT: one part with everything in it, its settings as plain values, the vocabulary's files.

    reshard.pt   {"model": {name: tensor}, "cfg": {"model": {...}}, "args": None, ...}      torch opens it weights_only
    qkv_proj     | k rows | v rows | q rows |        the order in which metaseq splits its fused projection
    decoder.version                                  [3.], without which metaseq's strict loader refuses the file
    gpt2-vocab.json  gpt2-merges.txt  dict.txt       the vocabulary, where the model has a byte-level one
    smelt.config.json                                what no setting of metaseq says, and the Hugging Face files that lie here

A tied head is not stored: metaseq copies the embedding. Sources: facebookresearch/metaseq (checkpoint_utils.py,
transformer_lm.py, transformer_decoder.py, reshard_mp.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import ModelError
from ..formats.checkpoint import TensorSpec, literal
from ..formats.pth_write import Beside, TorchFile
from .architecture import Family
from .assemble import HEAD, Laid
from .carried import came_along
from .meta_params import BESIDE, config_beside
from .metaseq import ALIASES, DICTIONARY, MERGES, VOCAB, metaseq_name
from .model import LazyTensor, Model
from .tokenizer import BYTE_LEVEL
from .writer import Output, Placed, Writer, held, holds_torch, whole

FILE = "reshard.pt"
VERSION = "decoder.version"
_PROJECTION = re.compile(r"(decoder\.layers\.\d+\.self_attn\.)([kvq])_proj\.(weight|bias)")
_ORDER = "kvq"


def metaseq_tensors(family: Family, model: Model) -> list[Laid]:
    """Every tensor under metaseq's name, k, v and q of a layer joined. ModelError for a family that metaseq has not."""
    if family.name != "opt":
        raise ModelError(
            f"{model.files[0]}: metaseq's files hold OPT, not {family.name}: choose --to safetensors or gguf"
        )
    found: dict[str, list[tuple[str, LazyTensor]]] = {}
    for name, tensor in model.tensors.items():
        own = metaseq_name(name)
        match = _PROJECTION.fullmatch(own)
        which = "" if match is None else match[2]
        stored = own if match is None else f"{match[1]}qkv_proj.{match[3]}"
        found.setdefault(stored, []).append((which, tensor))
    laid = []
    for stored, parts in found.items():
        tensors = tuple(tensor for _, tensor in sorted(parts, key=lambda part: _ORDER.find(part[0])))
        rows = sum(tensor.shape[0] for tensor in tensors)
        laid.append(Laid(stored, (rows, *tensors[0].shape[1:]), tensors))
    return [held(VERSION, np.array([3.0], np.float32)), *laid]


def settings(model: Model) -> Beside:
    """What lies beside the tensors in the file: `cfg["model"]` in metaseq's words, and what its loader looks for."""
    config = model.config
    width, embedding = config["hidden_size"], config["word_embed_proj_dim"]
    said = {
        "_name": "transformer_lm_megatron",
        "arch": "transformer_lm_megatron",
        "activation_fn": config["activation_function"],
        "decoder_layers": config["num_hidden_layers"],
        "decoder_attention_heads": config["num_attention_heads"],
        "decoder_embed_dim": width,
        "decoder_ffn_embed_dim": config["ffn_dim"],
        "decoder_input_dim": embedding,
        "decoder_output_dim": embedding,
        "decoder_learned_pos": True,
        "decoder_normalize_before": config["do_layer_norm_before"],
        "no_scale_embedding": True,
        "share_decoder_input_output_embed": HEAD not in model.tensors,
        "disable_bias": not config["enable_bias"],
        "disable_affine_ln": not config["layer_norm_elementwise_affine"],
        "max_target_positions": config["max_position_embeddings"],
        "tokens_per_sample": config["max_position_embeddings"],
        "model_parallel_size": 1,
    }
    said |= {key: config[key] for key in ("dropout", "attention_dropout") if type(config.get(key)) is float}
    return {
        "cfg": {"model": said},
        "args": None,
        "extra_state": {"train_iterator": {"epoch": 0, "iterations_in_epoch": 0}},
        "optimizer_history": [{"num_updates": 0, "lr_scheduler_state": {}}],
        "shard_metadata": None,
    }


def documents(model: Model) -> dict[str, bytes]:
    """{name: content} of what lies beside the file; a file that metaseq has under its own name is there once."""
    carried = came_along(model)
    own = _vocabulary(model, carried)
    beside = {name: content for name, content in carried.items() if own.get(ALIASES.get(name, "")) != content}
    return {**own, **dict(sorted(beside.items())), BESIDE: config_beside(model, carried)}


def _vocabulary(model: Model, carried: dict[str, bytes]) -> dict[str, bytes]:
    """gpt2-vocab.json and gpt2-merges.txt: those that came, else those of the model's byte-level tokenizer."""
    own = {name: carried[name] for name in (VOCAB, DICTIONARY) if name in carried}
    if "vocab.json" in carried and "merges.txt" in carried:
        return {VOCAB: carried["vocab.json"], MERGES: carried["merges.txt"], **own}
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.kind != BYTE_LEVEL or tokenizer.pre != "gpt-2":
        return own
    ids = {text: id_ for id_, (text, _, _) in enumerate(tokenizer.pieces)}
    merges = "".join(f"{merge}\n" for merge in ("#version: 0.2", *tokenizer.merges))
    return {VOCAB: json.dumps(ids, ensure_ascii=False).encode(), MERGES: merges.encode(), **own}


def _placed(model: Model, _family: Family, specs: Sequence[TensorSpec], _output: Output) -> Placed:
    file = TorchFile(Path(FILE).stem, tuple(specs), settings(model))
    files = {FILE: file.layout()}
    places = whole(specs, files)
    files |= {name: literal(content) for name, content in documents(model).items()}
    return Placed(files, places, {FILE: file})


METASEQ_WRITER = Writer("metaseq", holds_torch, metaseq_tensors, _placed)
