"""Checkpoints as Meta wrote them, made by torch itself, and Meta's forward pass: what smelt is judged by.

    full state    {Meta key: whole tensor}          random_state, read_meta
    shards        [{Meta key: part}, ...]           shard_meta <-> merge_meta
    folder        consolidated.NN.pth  params.json  tokenizer.model  checklist.chk          write_meta -> MetaCheckpoint
    logits        meta_forward(full state, params, tokens)

Nothing here imports smelt. Every tensor is split as fairscale's layers split it:

    dim 0   wq wk wv w1 w3 output      (column-parallel: the outputs are divided)
    dim 1   wo w2                      (row-parallel: the inputs are divided)
    dim 1   tok_embeddings in LLaMA 1 and 2, dim 0 in Llama 3 and later
    whole   norms, rope.freqs          (each shard has them all)

Source: github.com/meta-llama/llama, model.py (the formulas); the facts about the files are from the releases.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import inspect
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class MetaCheckpoint:
    """A folder that `write_meta` wrote, and what is in it."""

    folder: Path
    params: dict[str, Any]
    state: State  # whole tensors in the stored dtype, without rope.freqs
    tokenizer: Path | None


# --- making a model


@functools.cache
def tokenizer_model(vocab: int = 512, *, dummy_prefix: bool = True) -> bytes:
    """A SentencePiece BPE model of `vocab` pieces with LLaMA's settings: unk, bos, eos, 256 bytes, then pieces.

    dummy_prefix  False puts no space before a text, as Gemma's does not
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(inspect.getsource(argparse).splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        minloglevel=2,
    )
    return model.getvalue()


def feed_forward_width(params: Mapping[str, Any]) -> int:
    """Meta's rule, in its integer steps."""
    width = int(2 * (4 * params["dim"]) / 3)
    if params.get("ffn_dim_multiplier") is not None:
        width = int(params["ffn_dim_multiplier"] * width)
    return params["multiple_of"] * math.ceil(width / params["multiple_of"])


def random_state(params: Mapping[str, Any], vocab: int, *, seed: int = 0, tied: bool = False) -> State:
    """Whole float32 tensors by Meta key, scaled so that each layer matters and logits spread by about 3."""
    generator = torch.Generator().manual_seed(seed)
    dim, ffn = params["dim"], feed_forward_width(params)
    kv_dim = dim // params["n_heads"] * (params.get("n_kv_heads") or params["n_heads"])

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * (gain / math.sqrt(columns))

    def norm() -> Tensor:
        return 1 + 0.1 * torch.randn(dim, generator=generator)

    state = {"tok_embeddings.weight": matrix(vocab, dim, gain=math.sqrt(dim))}
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}."
        state[prefix + "attention.wq.weight"] = matrix(dim, dim, gain=1.5)
        state[prefix + "attention.wk.weight"] = matrix(kv_dim, dim, gain=1.5)
        state[prefix + "attention.wv.weight"] = matrix(kv_dim, dim)
        state[prefix + "attention.wo.weight"] = matrix(dim, dim)
        state[prefix + "feed_forward.w1.weight"] = matrix(ffn, dim)
        state[prefix + "feed_forward.w2.weight"] = matrix(dim, ffn)
        state[prefix + "feed_forward.w3.weight"] = matrix(ffn, dim)
        state[prefix + "attention_norm.weight"] = norm()
        state[prefix + "ffn_norm.weight"] = norm()
    state["norm.weight"] = norm()
    if tied:
        state["tok_embeddings.weight"] = matrix(vocab, dim, gain=3.0)
        state["output.weight"] = state["tok_embeddings.weight"]
    else:
        state["output.weight"] = matrix(vocab, dim, gain=3.0)
    return state


# --- shards


def split_dim(key: str, embedding_dim: int = 1) -> int | None:
    """The dimension along which shards divide a tensor; None: each holds it whole."""
    if key == "tok_embeddings.weight":
        return embedding_dim
    if key.endswith(("norm.weight", "rope.freqs")):
        return None
    return 1 if key.endswith(("wo.weight", "w2.weight")) else 0


def shard_meta(full_state: Mapping[str, Tensor], n_shards: int, *, embedding_dim: int = 1) -> list[State]:
    """Divide whole tensors among model-parallel ranks; every part is contiguous and owns its storage."""
    shards: list[State] = [{} for _ in range(n_shards)]
    for key, tensor in full_state.items():
        dim = split_dim(key, embedding_dim)
        if dim is not None and tensor.shape[dim] % n_shards:
            raise ValueError(f"{key} {tuple(tensor.shape)} does not divide into {n_shards} shards along dim {dim}")
        parts = [tensor] * n_shards if dim is None else tensor.chunk(n_shards, dim)
        for shard, part in zip(shards, parts, strict=True):
            shard[key] = part.clone(memory_format=torch.contiguous_format)
    return shards


def merge_meta(shards: list[State], *, embedding_dim: int = 1) -> State:
    """The inverse of `shard_meta`; tensors that each shard holds whole are taken from the first."""
    dims = {key: split_dim(key, embedding_dim) for key in shards[0]}
    return {
        key: shards[0][key] if dim is None else torch.cat([shard[key] for shard in shards], dim)
        for key, dim in dims.items()
    }


def share_storage(shard: Mapping[str, Tensor]) -> State:
    """The same tensors as LLaMA 1 stored them: those of one layer are views into one storage, at offsets."""
    groups: dict[str, list[str]] = {}
    for key in shard:
        groups.setdefault(key.split(".")[1] if key.startswith("layers.") else "", []).append(key)
    views = {}
    for keys in groups.values():
        buffer = torch.cat([shard[key].flatten() for key in keys])
        parts = buffer.split([shard[key].numel() for key in keys])
        views.update({key: part.view(shard[key].shape) for key, part in zip(keys, parts, strict=True)})
    return {key: views[key] for key in shard}


# --- folders


def write_meta(
    folder: Path,
    *,
    n_shards: int = 1,
    dim: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int | None = None,
    multiple_of: int | None = None,
    vocab: int = 512,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    tied: bool = False,
    shared_storage: bool = False,
    embedding_dim: int = 1,
    rope_freqs: bool = True,
    zip_format: bool = True,
    tokenizer: str | None = "folder",
    extra_params: Mapping[str, Any] | None = None,
) -> MetaCheckpoint:
    """Write a random LLaMA in Meta's format; dim=256 gives rows that every K-quant divides.

    n_kv_heads      None leaves the key out of params.json, as LLaMA 1 does
    multiple_of     None: 256 where dim is a multiple of 256, else 32
    tied            output equals tok_embeddings (one storage for both where the shards allow it)
    shared_storage  the tensors of a layer are views into one storage, as in LLaMA 1
    embedding_dim   0 divides tok_embeddings as Llama 3 does
    zip_format      False: torch's format before 1.6
    tokenizer       "folder", "parent" (as LLaMA 1 lies on disk) or None
    extra_params    added to params.json, such as rope_theta, use_scaled_rope, vocab_size
    """
    multiple_of = multiple_of or (32 if dim % 256 else 256)
    params: dict[str, Any] = {"dim": dim, "multiple_of": multiple_of, "n_heads": n_heads}
    params |= {} if n_kv_heads is None else {"n_kv_heads": n_kv_heads}
    params |= {"n_layers": n_layers, "norm_eps": 1e-5, "vocab_size": -1, **(extra_params or {})}
    if (n_kv_heads or n_heads) % n_shards:
        raise ValueError(f"a shard holds whole heads: {n_kv_heads or n_heads} KV heads, {n_shards} shards")

    state = {key: tensor.to(dtype) for key, tensor in random_state(params, vocab, seed=seed, tied=tied).items()}
    buffers = {"rope.freqs": rope_frequencies(params).to(dtype)} if rope_freqs else {}
    folder.mkdir(parents=True, exist_ok=True)
    for rank, shard in enumerate(shard_meta({**state, **buffers}, n_shards, embedding_dim=embedding_dim)):
        if tied and torch.equal(shard["output.weight"], shard["tok_embeddings.weight"]):
            shard["output.weight"] = shard["tok_embeddings.weight"]
        stored = share_storage(shard) if shared_storage else shard
        path = folder / f"consolidated.{rank:02d}.pth"
        torch.save(stored, path, _use_new_zipfile_serialization=zip_format)
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".pth", ".json"})
    digests = [hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names]
    checklist = "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))
    (folder / "checklist.chk").write_text(checklist, encoding="utf-8")
    where = {"folder": folder, "parent": folder.parent, None: None}[tokenizer]
    tokenizer_path = where / "tokenizer.model" if where else None
    if tokenizer_path:
        tokenizer_path.write_bytes(tokenizer_model(vocab))
    return MetaCheckpoint(folder, params, state, tokenizer_path)


def read_meta(folder: Path, *, embedding_dim: int = 1) -> tuple[State, dict[str, Any]]:
    """(whole tensors as stored, with rope.freqs if the files have it; params) by torch.load."""
    paths = sorted(folder.glob("consolidated.*.pth"))
    shards = [torch.load(path, map_location="cpu", weights_only=True) for path in paths]
    params = json.loads((folder / "params.json").read_text(encoding="utf-8"))
    return merge_meta(shards, embedding_dim=embedding_dim), params


# --- Meta's forward pass


def rope_frequencies(params: Mapping[str, Any]) -> Tensor:
    """[head_dim / 2] float64: theta^(-2j / head_dim), slowed as Llama 3.1 does where params say use_scaled_rope.

    Scaled (lengths in positions; old context 8192, low 1, high 4, factor 8): wavelengths below 8192 / 4 stay, those
    above 8192 / 1 are divided by the factor, those between are blended.
    """
    head_dim = params["dim"] // params["n_heads"]
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = params.get("rope_theta", 10000.0) ** -exponents
    if not params.get("use_scaled_rope"):
        return frequencies
    factor, low, high, old_context = 8.0, 1.0, 4.0, 8192.0
    turns = old_context * frequencies / (2 * math.pi)
    blend = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - blend) / factor + blend)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def meta_forward(
    full_state: Mapping[str, Tensor], params: Mapping[str, Any], tokens: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Logits [..., positions, vocab] of token ids [..., positions], every position seeing those up to itself."""
    n_heads = params["n_heads"]
    repeats = n_heads // (params.get("n_kv_heads") or n_heads)
    n_positions = tokens.shape[-1]
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * rope_frequencies(params)
    turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64 if dtype == torch.float32 else None)
    future = torch.ones(n_positions, n_positions, dtype=torch.bool).triu(1)

    def weight(key: str) -> Tensor:
        return full_state[f"{key}.weight"].to(dtype)

    def heads(x: Tensor, key: str) -> Tensor:
        projected = x @ weight(key).T
        return projected.unflatten(-1, (-1, params["dim"] // n_heads)).transpose(-3, -2)

    def rotate(x: Tensor) -> Tensor:  # adjacent pairs are complex numbers, turned by position * frequency
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    x = weight("tok_embeddings")[tokens]
    for layer in range(params["n_layers"]):
        prefix = f"layers.{layer}"
        normed = rms_norm(x, weight(f"{prefix}.attention_norm"), params["norm_eps"])
        queries = rotate(heads(normed, f"{prefix}.attention.wq"))
        keys = rotate(heads(normed, f"{prefix}.attention.wk")).repeat_interleave(repeats, -3)
        values = heads(normed, f"{prefix}.attention.wv").repeat_interleave(repeats, -3)
        scores = (queries @ keys.transpose(-2, -1)) / math.sqrt(queries.shape[-1])
        mixed = scores.masked_fill(future, -math.inf).softmax(-1) @ values
        x = x + mixed.transpose(-3, -2).flatten(-2) @ weight(f"{prefix}.attention.wo").T
        normed = rms_norm(x, weight(f"{prefix}.ffn_norm"), params["norm_eps"])
        gate, up = (normed @ weight(f"{prefix}.feed_forward.{name}").T for name in ("w1", "w3"))
        x = x + (torch.nn.functional.silu(gate) * up) @ weight(f"{prefix}.feed_forward.w2").T
    return rms_norm(x, weight("norm"), params["norm_eps"]) @ weight("output").T
