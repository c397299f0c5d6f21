"""An f16 GGUF from a Meta folder by torch and gguf.GGUFWriter: the first of llama.cpp's two steps, at its least.

    python benchmarks/make_gguf.py FOLDER TARGET.gguf

llama.cpp's own converter reads Hugging Face's layout by torch and writes through this same class; here nothing is renamed
twice, permuted or checked, and the vocabulary is left out, so it can only be faster. For folders of one shard.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import torch

NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "tok_embeddings": "token_embd",
    "norm": "output_norm",
    "output": "output",
}


def gguf_name(name: str) -> str:
    """layers.0.attention.wq.weight -> blk.0.attn_q.weight."""
    stem = name.removesuffix(".weight")
    if stem.startswith("layers."):
        _, layer, rest = stem.split(".", 2)
        return f"blk.{layer}.{NAMES[rest]}.weight"
    return f"{NAMES[stem]}.weight"


def main() -> None:
    """Convert."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    (shard,) = folder.glob("consolidated.*.pth")
    params = json.loads((folder / "params.json").read_text())
    state = torch.load(shard, weights_only=True, mmap=True)
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(params["dim"])
    writer.add_block_count(params["n_layers"])
    writer.add_feed_forward_length(state["layers.0.feed_forward.w1.weight"].shape[0])
    writer.add_head_count(params["n_heads"])
    writer.add_layer_norm_rms_eps(params["norm_eps"])
    writer.add_vocab_size(state["output.weight"].shape[0])
    for name, tensor in state.items():
        writer.add_tensor(gguf_name(name), (tensor.float() if tensor.dim() == 1 else tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
