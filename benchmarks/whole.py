"""Whole commands against their peers, start-up included: quantize, copy, open, help.

    python benchmarks/make_synthetic.py /data/synthetic-2 --layers 2
    python benchmarks/whole.py /data/synthetic-2 /data/out [--json results.json] [--runs 3]

quantize  smelt from an f16 GGUF of 1.3 GB against llama.cpp's llama_model_quantize (llama-cpp-python), same threads
one pass  smelt from the Meta folder itself; llama.cpp needs the f16 GGUF made first
copy      `smelt convert` at the same dtype against `cp` of the same bytes
open      open_gguf of a 70B-shaped file against gguf.GGUFReader; `smelt --help`

Peers run in turn, A B A B, after one warm-up of each; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

FILE_TYPES = {"q4_k_m": 15, "q8_0": 7, "q4_0": 2}
LLAMA = (
    "import sys, llama_cpp; p = llama_cpp.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]);"
    "p.nthread = int(sys.argv[4]); sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
)
SMELT = [sys.executable, "-P", "-m", "smelt"]


def timed(words: list[str], leftovers: Path) -> float:
    """Seconds of one command; what it wrote is removed outside the clock."""
    os.sync()
    started = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    if leftovers.is_dir():
        shutil.rmtree(leftovers)
    leftovers.unlink(missing_ok=True)
    leftovers.with_name(leftovers.name + ".smelt.json").unlink(missing_ok=True)
    return seconds


def paired(ours: Callable[[], float], theirs: Callable[[], float], runs: int) -> dict[str, float]:
    """Alternating runs after a warm-up: {smelt, peer, ratio} where ratio above 1 means that smelt is faster."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return {
        "smelt_seconds": round(median(a for a, _ in pairs), 4),
        "peer_seconds": round(median(b for _, b in pairs), 4),
        "ratio": round(median(b / a for a, b in pairs), 2),
    }


def header_of_70b(path: Path) -> None:
    """A GGUF header of Llama 3 70B's shape: 723 tensors, 128,256 tokens, 280,147 merges; its data is a hole."""
    from smelt.dtypes import F16, F32
    from smelt.formats.checkpoint import TensorSpec
    from smelt.formats.gguf import GGUFValue, gguf_layout

    specs = [TensorSpec("token_embd.weight", (128256, 8192), F16), TensorSpec("output.weight", (128256, 8192), F16)]
    specs.append(TensorSpec("output_norm.weight", (8192,), F32))
    shapes = {"attn_q": (8192, 8192), "attn_k": (1024, 8192), "attn_v": (1024, 8192), "attn_output": (8192, 8192)}
    shapes |= {"ffn_gate": (28672, 8192), "ffn_up": (28672, 8192), "ffn_down": (8192, 28672)}
    for layer in range(80):
        specs += [TensorSpec(f"blk.{layer}.{name}.weight", shape, F16) for name, shape in shapes.items()]
        specs += [TensorSpec(f"blk.{layer}.{name}.weight", (8192,), F32) for name in ("attn_norm", "ffn_norm")]
    metadata = {
        "general.architecture": GGUFValue("string", "llama"),
        "tokenizer.ggml.tokens": GGUFValue("[string]", [f"token{i}" for i in range(128256)]),
        "tokenizer.ggml.token_type": GGUFValue("[i32]", [1] * 128256),
        "tokenizer.ggml.merges": GGUFValue("[string]", [f"left{i} right{i}" for i in range(280147)]),
    }
    layout = gguf_layout(specs, metadata)
    with path.open("wb") as file:
        file.truncate(layout.nbytes)
        for offset, piece in layout.pieces:
            file.seek(offset)
            file.write(piece)


def open_both(path: Path, runs: int) -> dict[str, float]:
    """Seconds to open the same file, in this process."""
    from gguf import GGUFReader
    from smelt.formats.gguf import open_gguf

    def clock(opens: Callable[[Path], object]) -> float:
        started = time.perf_counter()
        opens(path)
        return time.perf_counter() - started

    return paired(lambda: clock(open_gguf), lambda: clock(GGUFReader), min(runs, 2))


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    f16, ours, theirs = options.out / "f16.gguf", options.out / "ours.gguf", options.out / "theirs.gguf"
    context = ["--context-length", "2048"]
    subprocess.run([*SMELT, "convert", str(options.source), str(f16), "--force", "-q", *context], check=True)
    results: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, {options.threads} threads",
        "versions": {name: version(name) for name in ("smelt", "numba", "numpy", "llama-cpp-python", "gguf")},
        "f16_gguf_bytes": f16.stat().st_size,
    }

    def show(name: str, found: dict[str, float]) -> None:
        results[name] = found
        print(
            f"{name:24} smelt {found['smelt_seconds']:9.3f} s  peer {found['peer_seconds']:9.3f} s  {found['ratio']:7.2f}x"
        )

    threads = ["--threads", str(options.threads)]
    for scheme, number in FILE_TYPES.items():
        mine = [*SMELT, "quantize", str(f16), str(ours), "--scheme", scheme, "-q", *threads]
        peer = [sys.executable, "-P", "-c", LLAMA, str(f16), str(theirs), str(number), str(options.threads)]
        show(f"quantize {scheme}", paired(lambda w=mine: timed(w, ours), lambda w=peer: timed(w, theirs), options.runs))
    one_pass = [*SMELT, "quantize", str(options.source), str(ours), "--scheme", "q4_k_m", "-q", *threads, *context]
    two_steps = [sys.executable, "-P", "-c", LLAMA, str(f16), str(theirs), "15", str(options.threads)]
    show("Meta to q4_k_m", paired(lambda: timed(one_pass, ours), lambda: timed(two_steps, theirs), options.runs))
    copy = [*SMELT, "convert", str(f16), str(ours), "-q", *threads]
    show("copy", paired(lambda: timed(copy, ours), lambda: timed(["cp", str(f16), str(theirs)], theirs), options.runs))
    shape = options.out / "shape70b.gguf"
    header_of_70b(shape)
    show("open 70B header", open_both(shape, options.runs))
    shape.unlink()
    helps = sorted(timed([*SMELT, "--help"], ours) for _ in range(9))
    results["help_seconds"] = round(median(helps), 3)
    print(f"smelt --help {median(helps):.3f} s")
    f16.unlink()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
