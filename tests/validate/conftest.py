"""A small random LLaMA in memory: once as transformers runs it whole, once as smelt's Model of lazy tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from smelt.convert.model import LazyTensor, Model
from smelt.convert.tokenizer import Tokenizer
from smelt.dtypes import BF16, F16, F32, DType
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 300
torch.set_num_threads(1)  # matrices this small only wait for one another on two threads


class ByteTokenizer(Tokenizer):
    """Every byte is a token; three special ones come first."""

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]


class ShiftedTokenizer(Tokenizer):
    """Another vocabulary."""

    def encode(self, text: str) -> list[int]:
        return [3 + byte if index != 10 else 2 for index, byte in enumerate(text.encode())]


@dataclass
class Tiny:
    """Weights that a test may damage before it asks for the Model; `reads` logs (tensor, rows) of every read."""

    network: LlamaForCausalLM
    weights: dict[str, np.ndarray[Any, Any]]
    reads: list[tuple[str, int, int]] = field(default_factory=list)

    def model(self, dtype: DType = F32, tokenizer: type[Tokenizer] | None = ByteTokenizer) -> Model:
        config = self.network.config.to_dict()
        config["rope_theta"] = 10000.0
        config.pop("rope_parameters", None)
        tensors = {name: self.lazy(name, values, dtype) for name, values in self.weights.items()}
        vocabulary = None if tokenizer is None else tokenizer("llama", (), bos_id=1, eos_id=2, unk_id=0)
        return Model("llama", config, vocabulary, tensors, "safetensors", ())

    def lazy(self, name: str, values: np.ndarray[Any, Any], dtype: DType) -> LazyTensor:
        matrix = values.reshape(-1, values.shape[-1]).astype(np.float32)
        if dtype == F16:
            stored = matrix.astype(np.float16).view(np.uint8)
        elif dtype == BF16:
            stored = torch.from_numpy(matrix).bfloat16().view(torch.int16).numpy().view(np.uint8)
        else:
            stored = matrix.view(np.uint8)

        def read(start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
            self.reads.append((name, start, stop))
            return stored[start:stop].copy()

        return LazyTensor(name, tuple(values.shape), dtype, read)

    def copy(self) -> Tiny:
        return Tiny(self.network, {name: values.copy() for name, values in self.weights.items()})

    def noisy(self, share: float, seed: int = 1) -> Tiny:
        """Every matrix with noise of this share of its size."""
        generator = np.random.default_rng(seed)
        other = self.copy()
        for name, values in other.weights.items():
            if values.ndim == 2:
                noise = generator.standard_normal(values.shape).astype(np.float32)
                other.weights[name] = values + share * values.std() * noise
        return other

    def logits(self, tokens: np.ndarray[Any, Any]) -> torch.Tensor:
        """[windows, n] -> float64[windows, n, vocabulary], by transformers with the whole model in memory."""
        state = {name: torch.from_numpy(values) for name, values in self.weights.items()}
        self.network.load_state_dict(state, strict=False)
        with torch.no_grad():
            rows = [self.network(input_ids=torch.from_numpy(row)[None], use_cache=False).logits for row in tokens]
        return torch.cat(rows).double()


def make_tiny(*, tied: bool = False, n_kv_heads: int = 4, seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=n_kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    network = LlamaForCausalLM(config).eval()
    weights = {name: value.detach().numpy().copy() for name, value in network.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    return Tiny(network, weights)


@pytest.fixture
def make() -> Callable[..., Tiny]:
    return make_tiny


@pytest.fixture
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture
def shifted_tokenizer() -> type[Tokenizer]:
    return ShiftedTokenizer


@pytest.fixture
def text() -> str:
    """About 700 tokens, no two windows alike."""
    generator = np.random.default_rng(7)
    return "".join(chr(97 + int(i)) for i in generator.integers(0, 26, 700))
