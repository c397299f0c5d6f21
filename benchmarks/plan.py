"""Planning the largest checkpoints that Meta published: time, memory, and the target's size, from sparse files of true size.

    python benchmarks/plan.py FOLDER [--out benchmarks/results/plan-YYYY-MM-DD.txt]

FOLDER/65b         LLaMA 65B in 8 shards, fp16: 130.6 GB of zeros that take no room on the disk
FOLDER/405b-mp16   Llama 3.1 405B in 16 shards, bf16, every key-value head twice: 820.3 GB

Each shard is a real .pth (headers, pickle, directory) whose tensors are holes of a sparse file. `smelt convert --dry-run` then
plans it in a process of its own, whose peak RSS the kernel reports. The sizes to the byte are what the shapes say.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from smelt.dtypes import BF16, F16, DType
from smelt.formats.checkpoint import TensorSpec
from smelt.formats.pth_write import finish_pth, pth_layout


@dataclass(frozen=True)
class Published:
    """A model as Meta published it. `by_rows`: the dimension that divides the embedding is the first."""

    name: str
    params: dict[str, int | float | bool]
    ffn: int
    vocab: int
    n_shards: int
    dtype: DType
    by_rows: bool


MODELS = (
    Published(
        "65b",
        {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-05, "vocab_size": -1},
        *(22016, 32000, 8, F16, False),
    ),
    Published(
        "405b-mp16",
        {
            **{"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 16, "vocab_size": 128256},
            **{"ffn_dim_multiplier": 1.2, "multiple_of": 4096, "norm_eps": 1e-05},
            **{"rope_theta": 500000.0, "use_scaled_rope": True},
        },
        *(53248, 128256, 16, BF16, True),
    ),
)


def shard(model: Published) -> list[TensorSpec]:
    """The tensors of one shard."""
    dim, n = int(model.params["dim"]), model.n_shards
    kv_rows = dim // int(model.params["n_heads"]) * int(model.params.get("n_kv_heads", model.params["n_heads"]))
    embedding = (model.vocab // n, dim) if model.by_rows else (model.vocab, dim // n)
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": embedding, "norm.weight": (dim,)}
    shapes["output.weight"] = (model.vocab // n, dim)
    for layer in range(int(model.params["n_layers"])):
        prefix = f"layers.{layer}."
        shapes |= {
            f"{prefix}attention.wq.weight": (dim // n, dim),
            f"{prefix}attention.wk.weight": (kv_rows // n, dim),
            f"{prefix}attention.wv.weight": (kv_rows // n, dim),
            f"{prefix}attention.wo.weight": (dim, dim // n),
            f"{prefix}feed_forward.w1.weight": (model.ffn // n, dim),
            f"{prefix}feed_forward.w2.weight": (dim, model.ffn // n),
            f"{prefix}feed_forward.w3.weight": (model.ffn // n, dim),
            f"{prefix}attention_norm.weight": (dim,),
            f"{prefix}ffn_norm.weight": (dim,),
        }
    return [TensorSpec(name, shape, model.dtype) for name, shape in shapes.items()]


def write_sparse(folder: Path, model: Published) -> int:
    """The checkpoint's folder -> the bytes that its .pth files have; the tensors are never written."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(model.params), encoding="utf-8")
    specs, total = shard(model), 0
    for rank in range(model.n_shards):
        stem = f"consolidated.{rank:02d}"
        layout = pth_layout(specs, stem)
        # the CRCs are of no data that is there: planning checks only the pickle's
        pieces = (*layout.pieces, *finish_pth(specs, stem, {spec.name: 0 for spec in specs}))
        with open(folder / f"{stem}.pth", "wb") as file:
            file.truncate(layout.nbytes)
            for offset, piece in pieces:
                file.seek(offset)
                file.write(piece)
        total += layout.nbytes
    return total


def dry_run(source: Path, target: Path, to: str) -> dict[str, float]:
    """`smelt convert --dry-run` in a process of its own: seconds, peak RSS in MiB, planned bytes."""
    words = ["convert", str(source), str(target), "--to", to, "--dry-run", "--json", "--skip-tokenizer"]
    # no disk has room for it: the check of free space is answered by a file system without limits
    code = (
        "import sys, smelt.formats.target as target, smelt.cli as cli\n"
        "target.check_free_space = lambda folder, nbytes: None\n"
        f"sys.argv = ['smelt', *{words!r}]\ncli.main()"
    )
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE)
    output = process.stdout.read() if process.stdout else b""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{source}: exit status {status}")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": usage.ru_maxrss / 1024, "bytes": json.loads(output)["bytes"]}


def tensor_nbytes(model: Published, to: str) -> int:
    """Bytes of the target's tensors by arithmetic alone: each once, repeated key-value heads once but in a Meta folder."""
    dim, layers = int(model.params["dim"]), int(model.params["n_layers"])
    heads = int(model.params["n_heads"])
    stored_kv = int(model.params.get("n_kv_heads", heads))
    kv = dim // heads * (8 if model.name.startswith("405b") and to != "meta" else stored_kv)
    matrices = 2 * model.vocab * dim + layers * (2 * dim * dim + 2 * kv * dim + 3 * model.ffn * dim)
    norms = (2 * layers + 1) * dim
    return matrices * 2 + norms * {"meta": 2 * model.n_shards, "gguf": 4}.get(to, 2)


def main() -> None:
    """Make the sparse checkpoints, plan both formats, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [
        f"smelt convert --dry-run of sparse checkpoints of true size; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}",
        "bytes beyond tensors: headers, padding, configuration",
        "",
        f"{'model':<10} {'source bytes':>15} {'target':<12} {'planned bytes':>15} {'beyond tensors':>14} {'seconds':>8} "
        f"{'peak RSS':>9}",
    ]
    for model in MODELS:
        source = options.folder / model.name
        nbytes = write_sparse(source, model)
        for to in ("safetensors", "gguf", "meta"):
            found = dry_run(source, options.folder / f"out-{to}", to)
            beyond = int(found["bytes"]) - tensor_nbytes(model, to)
            lines.append(
                f"{model.name:<10} {nbytes:>15,} {to:<12} {int(found['bytes']):>15,} {beyond:>14,} "
                f"{found['seconds']:>8.1f} {found['peak_mib']:>5.0f} MiB"
            )
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
