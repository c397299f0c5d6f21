"""Mean KL divergence of every recipe's file from the f16 source: smelt's files against llama.cpp's own, on held-out text.

    python benchmarks/kld_table.py [MODEL] [--text FILE] [--calibration FILE] [--recipes Q4_K_M,IQ2_XS]       -> Markdown

MODEL is a Meta folder of the LLaMA family (the bundled model by default). Both sides quantize the same f16 GGUF by the same
recipe, without and with the same importance matrix: mean squares of the inputs of every linear layer but the head, on the
calibration text. Weights are compared with weights: each file is decoded by the `gguf` package and run by transformers in
float32, since llama.cpp's own forward also rounds activations. smelt's file is then loaded and run by llama.cpp.

ratio = smelt's mean KLD / llama.cpp's, with the 95 % interval of a paired bootstrap over the chunks of text. Needs the
packages of `pip install smelt[clients]`.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from smelt.api import convert, open_checkpoint, quantize
from smelt.convert.options import OpenOptions
from smelt.errors import SmeltError
from smelt.quantize.imatrix import Importance, read_imatrix
from smelt.quantize.recipes import RECIPES, Recipe
from transformers import LlamaForCausalLM

BUNDLED = Path(__file__).parents[1] / "examples" / "tiny-llama"
N_RESAMPLES = 2000
LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
END_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Bench:
    """The model, its f16 GGUF, and the text as tokens [chunks, length] with the model's log-probabilities of it."""

    model: LlamaForCausalLM
    source: Path
    tokens: torch.Tensor
    reference: list[torch.Tensor]
    importance: Importance
    known: dict[bytes, np.ndarray] = field(default_factory=dict)  # divergences by the digest of all weights


def canonical_name(name: str) -> str:
    """A GGUF tensor name -> transformers' name."""
    stem, suffix = name.rsplit(".", 1)
    if stem in END_NAMES:
        return f"{END_NAMES[stem]}.{suffix}"
    _, layer, role = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[role]}.{suffix}"


def gguf_name(module: str) -> str | None:
    """The GGUF name of a linear layer's weight; None for the head."""
    roles = {value: key for key, value in LAYER_NAMES.items()}
    parts = module.split(".", 3)
    return f"blk.{parts[2]}.{roles[parts[3]]}.weight" if len(parts) == 4 else None


def load(model: LlamaForCausalLM, path: Path) -> None:
    """Put the weights of a GGUF file, decoded by the gguf package, into `model`."""
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    state = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape([int(n) for n in reversed(tensor.shape)])
        n_heads = heads.get(tensor.name.split(".")[-2])
        if n_heads:  # GGUF pairs the rotary rows, transformers halves them
            weight = weight.reshape(n_heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        state[canonical_name(tensor.name)] = torch.from_numpy(np.ascontiguousarray(weight))
    model.load_state_dict(state, strict=False)


def log_probabilities(model: LlamaForCausalLM, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """float32[length, vocabulary] of each chunk."""
    with torch.inference_mode():
        for chunk in tokens:
            yield torch.log_softmax(model(chunk[None], use_cache=False).logits[0], -1)


def divergences(bench: Bench, path: Path) -> np.ndarray:
    """float64[chunks]: the mean KL divergence of the file's model from the reference over each chunk's positions."""
    digest = weights_digest(path)
    if digest not in bench.known:  # most of the simple types are the same on both sides, byte for byte
        load(bench.model, path)
        found = [
            float((p.exp() * (p - q)).sum(-1, dtype=torch.float64).mean())
            for p, q in zip(bench.reference, log_probabilities(bench.model, bench.tokens), strict=True)
        ]
        bench.known[digest] = np.array(found)
    return bench.known[digest]


def weights_digest(path: Path) -> bytes:
    """One digest of every tensor's name, type and bytes."""
    digest = blake2b(digest_size=16)
    for tensor in sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.name):
        digest.update(f"{tensor.name} {tensor.tensor_type.name} ".encode())
        digest.update(np.ascontiguousarray(tensor.data))
    return digest.digest()


def tokenized(model: Path, text: str, length: int, chunks: int) -> torch.Tensor:
    """The first whole chunks of the text as ids [chunks, length]."""
    ids = SentencePieceProcessor(model_file=str(model / "tokenizer.model")).encode(text)
    n = min(chunks, len(ids) // length)
    return torch.tensor(ids[: n * length]).reshape(n, length)


def write_imatrix(model: LlamaForCausalLM, tokens: torch.Tensor, path: Path) -> None:
    """What llama-imatrix would measure, in its format: for each linear layer the sums of its inputs' squares."""
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> object:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].double().square().reshape(-1, inputs[0].shape[-1]).sum(0)
            sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

        return add

    hooks = []
    for module_name, module in model.named_modules():
        name = gguf_name(module_name) if isinstance(module, torch.nn.Linear) else None
        if name is not None:
            hooks.append(module.register_forward_pre_hook(watch(name)))
    for _ in log_probabilities(model, tokens):
        pass
    for hook in hooks:
        hook.remove()
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_uint32("imatrix.chunk_count", len(tokens))
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.float().numpy()[None])
        writer.add_tensor(f"{name}.counts", np.array([[tokens.numel()]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prepare(options: argparse.Namespace, folder: Path) -> Bench:
    """Convert the model, measure its importance and its own log-probabilities."""
    facts = OpenOptions(context_length=options.length)
    convert(options.model, folder / "f16.gguf", dtype="f16", options=facts)
    convert(options.model, folder / "hf", options=facts)
    model = LlamaForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    text = options.text.read_text(encoding="utf-8")
    calibration = text[: len(text) // 4] if options.calibration is None else options.calibration.read_text("utf-8")
    text = text[len(text) // 4 :] if options.calibration is None else text
    tokens = tokenized(options.model, text, options.length, options.chunks)
    write_imatrix(model, tokenized(options.model, calibration, options.length, options.chunks), folder / "imatrix.gguf")
    reference = list(log_probabilities(model, tokens))
    return Bench(model, folder / "f16.gguf", tokens, reference, read_imatrix(folder / "imatrix.gguf"))


def llama_quantize(source: Path, target: Path, recipe: Recipe, importance: Importance | None, threads: int) -> bool:
    """llama.cpp's own file; False where it refuses."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = recipe.file_type, threads
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance.values) + 1))()
        for entry, (name, values) in zip(entries, importance.values.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    return llama_cpp.llama_model_quantize(bytes(source), bytes(target), params) == 0


def smelt_quantize(bench: Bench, target: Path, recipe: Recipe, importance: Importance | None, threads: int) -> str:
    """smelt's file; what it says where it refuses, else nothing."""
    try:
        quantize(
            bench.source, target, recipe.name, imatrix=None if importance is None else importance.path, threads=threads
        )
    except SmeltError as error:
        return str(error)
    return ""


def runs_in_llama_cpp(path: Path) -> bool:
    """Load the file and decode eight tokens, greedily."""
    model = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False)
    answer = model.create_completion("def read(self):", max_tokens=8, temperature=0.0)
    model.close()
    return int(answer["usage"]["completion_tokens"]) > 0


def ratio_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """95 % of the ratio of means over resampled chunks, both sides on the same ones."""
    picks = np.random.default_rng(0).integers(0, len(ours), (N_RESAMPLES, len(ours)))
    low, high = np.quantile(ours[picks].mean(1) / theirs[picks].mean(1), [0.025, 0.975])
    return float(low), float(high)


def row(bench: Bench, recipe: Recipe, with_importance: bool, folder: Path, threads: int) -> str:
    """One line of the table."""
    importance = bench.importance if with_importance else None
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    head = f"| {recipe.name} | {'yes' if with_importance else 'no'} |"
    refused = smelt_quantize(bench, ours, recipe, importance, threads)
    made = llama_quantize(bench.source, theirs, recipe, importance, threads)
    try:
        if refused:
            return f"{head} {'made' if made else 'refused'} by llama.cpp; smelt: {refused.split(': give')[0]} | | | |"
        runs = "yes" if runs_in_llama_cpp(ours) else "no"
        mine = divergences(bench, ours)
        if not made:
            return f"{head} {mine.mean():.6f} | refused | | {runs} |"
        peer = divergences(bench, theirs)
        if peer.max() == 0:
            return (
                f"{head} {mine.mean():.6f} | {peer.mean():.6f} | {'equal' if mine.max() == 0 else 'worse'} | {runs} |"
            )
        low, high = ratio_interval(mine, peer)
        ratio = f"{mine.mean() / peer.mean():.3f} ({low:.3f} to {high:.3f})"
        return f"{head} {mine.mean():.6f} | {peer.mean():.6f} | {ratio} | {runs} |"
    finally:
        for path in (ours, theirs, ours.with_name("ours.gguf.smelt.json")):
            path.unlink(missing_ok=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", default=BUNDLED)
    parser.add_argument("--text", type=Path, help="held-out text; MODEL/heldout.txt by default")
    parser.add_argument(
        "--calibration", type=Path, help="by default the first quarter of the text, which is then left out"
    )
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.text = options.text or options.model / "heldout.txt"
    silent = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = prepare(options, folder)
        parts = ("smelt", "llama-cpp-python", "gguf", "transformers", "torch", "numba")
        print(f"{time.strftime('%Y-%m-%d')}; {', '.join(f'{part} {version(part)}' for part in parts)}")
        weights = open_checkpoint(bench.source).parameters
        print(f"{weights:,} weights; {len(bench.tokens)} chunks of {bench.tokens.shape[1]} tokens\n")
        print("| recipe | importance | smelt | llama.cpp | ratio | runs in llama.cpp |\n|---|---|---|---|---|---|")
        for recipe in (RECIPES[part.upper()] for part in options.recipes.split(",")):
            for with_importance in (False, True):
                print(row(bench, recipe, with_importance, folder, options.threads), flush=True)


if __name__ == "__main__":
    main()
