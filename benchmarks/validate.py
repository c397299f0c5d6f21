"""The streamed forward pass against the same one with the whole model in memory: time, and peak memory; and a 65B's memory.

    python benchmarks/make_synthetic.py /data/synthetic-4 --layers 4 --shards 1
    smelt convert /data/synthetic-4 /data/hf-4 --context-length 2048
    python benchmarks/validate.py /data/hf-4 [--json results.json] [--runs 2] [--windows 3] [--ctx 512]

Both sides start from the same fp16 safetensors, widen them to float32 and score every token of the same windows: smelt by
`measure_perplexity`, one layer in memory at a time; the peer by transformers' network, filled at once, and a float32
log-softmax. They run in turn, each in a process of its own, whose imports are not counted; CPU time of all its threads, wall
time, and the peak of RssAnon in /proc/self/status (page cache does not count, all that is allocated does). The ratio is
streamed over in memory: 1.00 means that streaming costs nothing.

    python benchmarks/validate.py --large /data/sparse-65b [--json results.json]

writes two layers of LLaMA-65B's shape as one sparse fp16 file of zeros (memory does not ask what a weight says) and watches
`smelt validate` run it against itself on 64 tokens. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

SEED = 0


def token_ids(n: int, vocabulary: int = 32000) -> list[int]:
    """`n` of them at random: what they say does not matter to the time."""
    return [int(i) for i in np.random.default_rng(SEED).integers(3, vocabulary, n)]


def anonymous(process: int | str = "self") -> int:
    """RssAnon of a process in KiB."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line
    )
    return int(fields["RssAnon"].split()[0])


def measured(work: Callable[[], float]) -> dict[str, float]:
    """`work` gives a perplexity -> {that, wall and CPU seconds, anonymous MiB before and at the peak}."""
    peak = before = anonymous()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.01):
            peak = max(peak, anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    over.set()
    watcher.join()
    return {"perplexity": found, "wall": wall, "cpu": cpu, "before_mib": before / 1024, "peak_mib": peak / 1024}


def streamed(folder: Path, ids: Sequence[int], n_ctx: int) -> dict[str, float]:
    """smelt's own pass."""
    import transformers.models.llama.modeling_llama  # noqa: F401  (an import, not the work)
    from smelt.api import open_checkpoint
    from smelt.validate.options import ValidateOptions
    from smelt.validate.question import Subject
    from smelt.validate.run import measure_perplexity
    from smelt.validate.texts import Text

    options = ValidateOptions("gptq", n_ctx, resamples=100, device="cpu", generate=0)
    text = Text("ids", None, tuple(ids))
    return measured(lambda: measure_perplexity(Subject("m", open_checkpoint(folder)), text, options).perplexity)


def in_memory(folder: Path, ids: Sequence[int], n_ctx: int) -> dict[str, float]:
    """transformers, all weights at once."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    def work() -> float:
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32).eval()
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            network.load_state_dict(state, strict=False, assign=True)
            del state
        rotary = network.model.rotary_emb
        network.model.rotary_emb = type(rotary)(network.config)  # its buffers are in no file
        total, count = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(ids) - n_ctx + 1, n_ctx):
                window = torch.tensor([ids[start : start + n_ctx]])
                odds = torch.log_softmax(network(input_ids=window, use_cache=False).logits[0, :-1], dim=-1)
                nll = -odds.gather(1, window[0, 1:, None]).double()
                total, count = total + float(nll.sum()), count + nll.numel()
        return math.exp(total / count)

    return measured(work)


def write_sparse(folder: Path, dim: int = 8192, ffn: int = 22016, n_heads: int = 64, n_layers: int = 2) -> int:
    """A Hugging Face folder whose weights are a hole; -> weights of a layer."""
    shapes = {"model.embed_tokens.weight": [32000, dim], "lm_head.weight": [32000, dim], "model.norm.weight": [dim]}
    layer = {f"self_attn.{name}_proj": [dim, dim] for name in "qkvo"}
    layer |= {"mlp.gate_proj": [ffn, dim], "mlp.up_proj": [ffn, dim], "mlp.down_proj": [dim, ffn]}
    layer |= {"input_layernorm": [dim], "post_attention_layernorm": [dim]}
    for index in range(n_layers):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    header, at = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": dim,
        "intermediate_size": ffn,
    }
    config |= {"num_attention_heads": n_heads, "num_key_value_heads": n_heads, "num_hidden_layers": n_layers}
    config |= {"vocab_size": 32000, "rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0}
    config |= {"tie_word_embeddings": False, "torch_dtype": "float16", "hidden_act": "silu"}
    (folder / "config.json").write_text(json.dumps(config))
    return sum(math.prod(shape) for shape in layer.values())


def large(folder: Path) -> dict[str, float]:
    """Peak anonymous memory of `smelt validate` for the sparse model against itself."""
    weights = write_sparse(folder)
    ids = folder / "ids.json"
    ids.write_text(json.dumps(token_ids(64)))
    words = ["validate", str(folder), str(folder), "--token-ids", str(ids), "--skip-tokenizer", "--ctx", "64", "-q"]
    process = subprocess.Popen([sys.executable, "-P", "-m", "smelt", *words, "--protocol", "gptq"])
    peak = 0
    while process.poll() is None:
        with suppress(FileNotFoundError, ProcessLookupError, KeyError):
            peak = max(peak, anonymous(process.pid))
        time.sleep(0.01)
    found = {
        "layer_weights": weights,
        "peak_mib": round(peak / 1024),
        "six_bytes_a_weight_mib": round(6 * weights / 2**20),
    }
    print(
        f"65B-shaped layers: peak {found['peak_mib']} MiB, of which 6 bytes a weight are {found['six_bytes_a_weight_mib']}"
    )
    return {**found, "exit_code": process.returncode}


def child(side: str, options: argparse.Namespace) -> dict[str, float]:
    """One side in a process of its own."""
    words = [str(options.folder), "--side", side, "--windows", str(options.windows), "--ctx", str(options.ctx)]
    done = subprocess.run([sys.executable, "-P", __file__, *words], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{side:10} wall {found['wall']:7.1f} s   CPU {found['cpu']:7.1f} s   peak {found['peak_mib']:6.0f} MiB",
        flush=True,
    )
    return found


def main() -> None:
    """Run both sides in turn and print their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--large", action="store_true", help="measure the memory of 65B-shaped layers in FOLDER instead"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--windows", type=int, default=3)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--side", choices=["streamed", "in memory"])
    options = parser.parse_args()
    if options.side:
        ids = token_ids(options.windows * options.ctx)
        side = streamed if options.side == "streamed" else in_memory
        print(json.dumps(side(options.folder, ids, options.ctx)))
        return
    if options.large:
        found = large(options.folder)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        return
    pairs = [(child("streamed", options), child("in memory", options)) for _ in range(options.runs)]
    apart = max(abs(a["perplexity"] / b["perplexity"] - 1) for a, b in pairs)
    results = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} CPUs",
        "load": [round(number, 1) for number in os.getloadavg()],
        "versions": {name: version(name) for name in ("smelt", "torch", "transformers", "numpy", "safetensors")},
        "bytes": sum(path.stat().st_size for path in options.folder.glob("*.safetensors")),
        "windows": options.windows,
        "n_ctx": options.ctx,
        "runs": [{"streamed": a, "in memory": b} for a, b in pairs],
        "cpu_ratio": round(median(a["cpu"] / b["cpu"] for a, b in pairs), 3),
        "wall_ratio": round(median(a["wall"] / b["wall"] for a, b in pairs), 3),
        "perplexities_apart": apart,
    }
    print(f"ratio: CPU {results['cpu_ratio']}, wall {results['wall_ratio']}; perplexities differ by {apart:.1e}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
