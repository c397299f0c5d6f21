"""Small models of OPT's and BLOOM's shapes with byte-level vocabularies, random or trained on the standard library's text.

make(folder, "opt")   config.json, model.safetensors (fp16), the tokenizer's files          -> the folder
steps = 0             random weights, scaled so that each layer matters
steps = 200           about a minute of CPU: the model knows how Python source looks
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from smelt.convert.tokenizer_pre import RULES, normalizer_json, pre_tokenizer_json
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM

CONTEXT, BATCH, VOCABULARY, END = 128, 8, 512, "<|end|>"
SOURCE = Path(argparse.__file__).parent
HELD_OUT = (SOURCE / "difflib.py").read_text(encoding="utf-8")
_SIZES = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_OPT = {"model_type": "opt", **_SIZES, "ffn_dim": 192, "max_position_embeddings": CONTEXT, "dropout": 0.0}
_OPT |= {"bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "opt": _OPT,
    "opt, post-norm": _OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 64},
    "bloom": {
        "model_type": "bloom",
        **{"hidden_size": 96, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "seq_length": CONTEXT},
        **{"bos_token_id": VOCABULARY - 1, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1},
    },
}


def make(folder: Path, name: str, steps: int = 0) -> Path:
    """A Hugging Face folder of the model `name` in `CONFIGS`."""
    torch.manual_seed(0)
    fields = dict(CONFIGS[name])
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))
    if steps:
        _train(network, vocabulary("bloom" if name == "bloom" else "gpt-2"), steps)
    else:
        _scatter(network)
    network.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"seq_length": CONTEXT}))
    _write_vocabulary(folder, name)
    return folder


def _scatter(network: Any) -> None:
    with torch.no_grad():
        for key, weight in network.named_parameters():
            noise = torch.randn(weight.shape)
            if weight.dim() > 1:
                weight.copy_(noise * (0.2 if "embed" in key else weight.shape[-1] ** -0.5))
            else:
                weight.add_(noise * 0.1)


def _train(network: Any, tokenizer: Tokenizer, steps: int) -> None:
    names = (
        "ast.py",
        "bdb.py",
        "cgi.py",
        "cmd.py",
        "csv.py",
        "dis.py",
        "pdb.py",
        "uuid.py",
        "zipfile.py",
        "tarfile.py",
    )
    files = [SOURCE / name for name in names if (SOURCE / name).exists()]
    ids = torch.tensor(tokenizer.encode("".join(file.read_text(encoding="utf-8") for file in files)).ids)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    network.train()
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT, (BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + CONTEXT] for start in starts])
        optimizer.zero_grad()
        network(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()


@cache
def vocabulary(pre: str) -> Tokenizer:
    """Byte-level BPE by the rules `pre`; the last of its `VOCABULARY` tokens ends a text, and begins one of OPT's."""
    frame: dict[str, Any] = json.loads(Tokenizer(BPE()).to_str())
    frame |= {"normalizer": normalizer_json(RULES[pre]), "pre_tokenizer": pre_tokenizer_json(RULES[pre])}
    frame["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    made = Tokenizer.from_str(json.dumps(frame))
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False)
    made.train([str(SOURCE / name) for name in ("argparse.py", "ast.py", "csv.py")], trainer)
    made.add_special_tokens([END])
    return made


def _write_vocabulary(folder: Path, name: str) -> None:
    settings: dict[str, Any] = {"bos_token": END, "eos_token": END}
    if name == "bloom":
        (folder / "tokenizer.json").write_text(vocabulary("bloom").to_str())
        settings |= {"tokenizer_class": "BloomTokenizerFast"}
    else:
        held = json.loads(vocabulary("gpt-2").to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in held["merges"]]
        (folder / "vocab.json").write_text(json.dumps(held["vocab"] | {END: VOCABULARY - 1}))
        (folder / "merges.txt").write_text("\n".join(("#version: 0.2", *merges, "")))
        settings |= {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
