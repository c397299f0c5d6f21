"""What the two clients compute: logits of transformers and of llama.cpp on the same token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch


def transformers_logits(folder: Path, tokens: torch.Tensor, dtype: torch.dtype | str = torch.float32) -> torch.Tensor:
    """[positions, vocab] of one text, in `dtype`; "auto" is the one that config.json names."""
    transformers = pytest.importorskip("transformers", reason="it computes the logits")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        return model(tokens[None], use_cache=False).logits[0]


def llama_cpp_logits(path: Path, tokens: torch.Tensor) -> torch.Tensor:
    """float32[positions, vocab] of one text: f32 keys and values, no flash attention, YaRN as the file has it."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    client = llama_cpp.Llama(
        str(path),
        n_ctx=len(tokens),
        logits_all=True,
        verbose=False,
        n_threads=2,
        flash_attn=False,
        type_k=0,  # F32; F16 unless asked otherwise, which moves logits by 3e-3
        type_v=0,
        yarn_attn_factor=-1.0,  # what the file says, not the binding's own defaults
        yarn_beta_fast=-1.0,
        yarn_beta_slow=-1.0,
    )
    client.eval(tokens.tolist())
    found = np.array(client.scores[: len(tokens)])
    client.close()
    return torch.from_numpy(found)
