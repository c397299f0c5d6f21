"""The measurement against the plainest computation: the whole model in memory, transformers' forward, sums as in a textbook.

LLaMA is the bundled trained model; OPT (pre-norm, and post-norm as its 350M) and BLOOM are made here, with random weights in
the default run and trained for a minute in those marked
`long`. Each prints what it found (`pytest -rP`); docs/validation.md has the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from smelt.api import convert, open_checkpoint, perplexity, quantize, validate
from smelt.cli import cli
from smelt.convert.options import OpenOptions
from smelt.validate.options import ValidateOptions
from smelt.validate.protocols import encode
from transformers import AutoModelForCausalLM

from .trained import CONFIGS, HELD_OUT, make

N_CTX, CHUNKS = 64, 6
PROTOCOLS = ("llamacpp", "gptq", "strided")
MODELS = [
    "llama",
    *CONFIGS,
    *(pytest.param(f"{name}, trained", marks=pytest.mark.long) for name in CONFIGS),
]


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a Hugging Face folder of fp16 weights."""
    target = tmp_path_factory.mktemp("models") / "hf"
    if request.param == "llama":
        convert(tiny_llama, target, options=OpenOptions(context_length=512))
        return target
    return make(target, request.param.removesuffix(", trained"), 200 if request.param.endswith("trained") else 0)


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    target = folder.parent / "m.gguf"
    quantize(folder, target, "q8_0")
    return target


def scored(ids: list[int], begin: int | None, how: str) -> Iterator[tuple[list[int], int]]:
    """(a window, its first scored token) for each, as the protocols are told in docs/validation.md."""
    if how == "strided":
        for start in range(0, (CHUNKS - 1) * N_CTX // 2 + 1, N_CTX // 2):
            yield ids[start : start + N_CTX], 1 if start == 0 else N_CTX // 2
        return
    for start in range(0, CHUNKS * N_CTX, N_CTX):
        window = ids[start : start + N_CTX]
        if how == "llamacpp":
            yield [window[0] if begin is None else begin, *window[1:]], N_CTX // 2 + 1
        else:
            yield window, 1


def log_odds(network: Any, folder: Path, how: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(ln p float64[n, vocabulary], the tokens that came [n]) of every scored token."""
    tokenizer = open_checkpoint(folder).tokenizer
    assert tokenizer is not None
    begin = tokenizer.bos_id if tokenizer.add_bos else None
    rows, came = [], []
    for window, first in scored(encode(tokenizer, HELD_OUT), begin, how):
        with torch.no_grad():
            logits = network(input_ids=torch.tensor(window)[None], use_cache=False).logits[0]
        rows.append(torch.log_softmax(logits.double(), dim=-1)[first - 1 : -1])
        came += window[first:]
    return torch.cat(rows), torch.tensor(came)


@pytest.mark.parametrize("how", PROTOCOLS)
def test_perplexity_is_that_of_the_model_in_memory(folder: Path, network: Any, how: str) -> None:
    odds, came = log_odds(network, folder, how)
    direct = float(torch.exp(-odds.gather(1, came[:, None]).mean()))
    found = perplexity(folder, HELD_OUT, ValidateOptions(how, n_ctx=N_CTX, chunks=CHUNKS, resamples=100))
    print(f"{how}: perplexity {found.perplexity:.6f}, in memory {direct:.6f}, {found.perplexity / direct - 1:+.1e}")
    assert found.evaluation.tokens == len(came)
    assert found.perplexity == pytest.approx(direct, rel=1e-5)


def test_divergence_and_agreement_are_those_of_two_models_in_memory(folder: Path, network: Any, small: Path) -> None:
    p, came = log_odds(network, folder, "llamacpp")
    stored = open_checkpoint(small).tensors
    state = {name: torch.from_numpy(tensor.load_float32().copy()) for name, tensor in stored.items()}
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    network.load_state_dict(state, strict=False)
    q, _ = log_odds(network, folder, "llamacpp")
    network.load_state_dict(before)
    kld = float((p.exp() * (p - q)).sum(-1).mean())
    same = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    change = float((p - q).gather(1, came[:, None]).mean())
    options = ValidateOptions(n_ctx=N_CTX, chunks=CHUNKS, resamples=100, noise_floor=False, generate=0)
    found = validate(folder, [small], HELD_OUT, options).candidates[0].drift
    assert found is not None
    print(f"KLD {found.kld.mean.mean:.9f}, in memory {kld:.9f}; top-1 {found.top1_agreement.mean:.6f}, {same:.6f}")
    assert kld > 1e-7
    assert found.kld.mean.mean == pytest.approx(kld, abs=1e-6, rel=1e-2)
    assert found.delta_ln_ppl.mean == pytest.approx(change, abs=1e-6)
    assert found.top1_agreement.mean == pytest.approx(same, abs=1e-6)


def test_the_command_validates_a_folder_against_its_q8_0_file(folder: Path, small: Path) -> None:
    text = folder.parent / "text.txt"
    text.write_text(HELD_OUT, encoding="utf-8")
    command = ["validate", folder, small, "--text", text, "--ctx", N_CTX, "--chunks", 8, "--json", "-q"]
    done = CliRunner().invoke(cli, [*map(str, command), "--skip-noise-floor"])
    assert done.exit_code in (0, 1), done.output
    found = json.loads(done.stdout)["candidates"][0]
    facts = {gate["name"]: gate["passed"] for gate in found["gates"]}
    assert all(facts[name] for name in ("finite", "tensors", "tokenizer", "special tokens", "config"))
    assert found["kld"]["mean"] < 0.003
    assert len(found["layers"]) == open_checkpoint(folder).config["num_hidden_layers"]
    assert np.isfinite([layer["isolated"]["relative_error"] for layer in found["layers"]]).all()
