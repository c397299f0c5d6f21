"""Whole commands against their peers, start-up included: quantize, copy, open, help.

    python benchmarks/make_synthetic.py /data/synthetic-2 --layers 2 --shards 1
    python benchmarks/whole.py /data/synthetic-2 /data/out [--json results.json] [--runs 3] [--only copy,open]

quantize  smelt from an f16 GGUF of 1.3 GB against llama.cpp's llama_model_quantize (llama-cpp-python), same threads
one pass  smelt from the Meta folder itself, against an f16 GGUF by torch and gguf.GGUFWriter (make_gguf.py) and then llama.cpp
copy      `smelt convert` at the same dtype against `cp` of the same bytes, and against `cp` and `sync -d` of the copy, which
          is what smelt does: it has its output on the disk before it gives it its name
open      open_gguf of a 70B-shaped file against gguf.GGUFReader; `smelt --help`

Peers run in turn, A B A B, after one warm-up of each; medians and their ratio are printed, of wall time and of the CPU time of
the command's own processes, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
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
PAUSE = 5  # seconds: a virtual machine's host takes freed memory back, then both sides find the same state
SMELT = [sys.executable, "-P", "-m", "smelt"]


Seconds = tuple[float, float]  # wall, CPU


def timed(steps: list[list[str]], leftovers: list[Path]) -> Seconds:
    """Seconds of commands, one after the other; what they wrote is removed outside the clock."""
    os.sync()
    time.sleep(PAUSE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    for words in steps:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".smelt.json").unlink(missing_ok=True)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def paired(ours: Callable[[], Seconds], theirs: Callable[[], Seconds], runs: int) -> dict[str, float]:
    """Alternating runs after a warm-up; a ratio above 1 means that smelt is faster."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return {
        "smelt_seconds": round(median(a[0] for a, _ in pairs), 4),
        "peer_seconds": round(median(b[0] for _, b in pairs), 4),
        "ratio": round(median(b[0] / a[0] for a, b in pairs), 2),
        "smelt_cpu_seconds": round(median(a[1] for a, _ in pairs), 4),
        "peer_cpu_seconds": round(median(b[1] for _, b in pairs), 4),
        "cpu_ratio": round(median(b[1] / a[1] for a, b in pairs), 2),
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

    def clock(opens: Callable[[Path], object]) -> Seconds:
        started, cpu = time.perf_counter(), time.process_time()
        opens(path)
        return time.perf_counter() - started, time.process_time() - cpu

    return paired(lambda: clock(open_gguf), lambda: clock(GGUFReader), min(runs, 2))


class Bench:
    """The files, and the table as it grows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.source, self.f16 = str(options.source), str(options.out / "f16.gguf")
        self.ours, self.theirs = options.out / "ours.gguf", options.out / "theirs.gguf"
        self.between = options.out / "between.gguf"
        self.threads = ["--threads", str(options.threads)]
        self.context = ["--context-length", "2048"]
        self.results: dict[str, object] = {}

    def show(self, name: str, found: dict[str, float]) -> None:
        """Keep a result and print its line."""
        self.results[name] = found
        wall, peer_wall, ratio, cpu, peer_cpu, cpu_ratio = found.values()
        print(f"{name:34} wall {wall:8.3f} against {peer_wall:8.3f} s {ratio:6.2f}x", end="")
        print(f"   CPU {cpu:7.2f} against {peer_cpu:7.2f} s {cpu_ratio:6.2f}x", flush=True)

    def compare(self, name: str, ours: list[str], *theirs: list[str]) -> None:
        """`smelt <ours>`, which writes self.ours, in turn with the peer's commands, which write self.theirs."""
        mine = [*SMELT, *ours, "-q", *self.threads]
        leftovers = [self.ours, self.theirs, self.between]
        runs = self.options.runs
        self.show(name, paired(lambda: timed([mine], leftovers), lambda: timed(list(theirs), leftovers), runs))

    def llama(self, source: str, scheme: str) -> list[str]:
        """The command by which llama.cpp's library quantizes."""
        number = str(FILE_TYPES[scheme])
        return [sys.executable, "-P", "-c", LLAMA, source, str(self.theirs), number, str(self.options.threads)]

    def quantize(self) -> None:
        """From an f16 GGUF."""
        for scheme in FILE_TYPES:
            mine = ["quantize", self.f16, str(self.ours), "--scheme", scheme]
            self.compare(f"quantize {scheme}", mine, self.llama(self.f16, scheme))

    def one_pass(self) -> None:
        """From the Meta folder; the peer in two steps."""
        mine = ["quantize", self.source, str(self.ours), "--scheme", "q4_k_m", *self.context]
        first = [sys.executable, "-P", str(Path(__file__).with_name("make_gguf.py")), self.source, str(self.between)]
        self.compare("Meta to q4_k_m", mine, first, self.llama(str(self.between), "q4_k_m"))

    def copy(self) -> None:
        """At the stored dtype."""
        folder = self.options.out / "hugging-face"
        subprocess.run([*SMELT, "convert", self.f16, str(folder), "--force", "-q"], check=True)
        self.ours = self.options.out / "ours"
        weights = str(folder / "model.safetensors")
        cases = {
            "GGUF": (["convert", self.f16, str(self.ours), "--to", "gguf"], self.f16),
            "safetensors": (["convert", str(folder), str(self.ours)], weights),
            "Meta to safetensors": (["convert", self.source, str(self.ours), *self.context], weights),
        }
        for name, (mine, like) in cases.items():
            copied = ["cp", like, str(self.theirs)]
            self.compare(f"copy {name}, cp", mine, copied)
            self.compare(f"copy {name}, cp and sync", mine, copied, ["sync", "-d", str(self.theirs)])
        shutil.rmtree(folder)

    def open(self) -> None:
        """Headers, and the help page."""
        shape = self.options.out / "shape70b.gguf"
        header_of_70b(shape)
        self.show("open 70B header", open_both(shape, self.options.runs))
        shape.unlink()
        helps = sorted(timed([[*SMELT, "--help"]], [])[0] for _ in range(9))
        self.results["help_seconds"] = round(median(helps), 3)
        print(f"smelt --help {median(helps):.3f} s")


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="quantize,one_pass,copy,open")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    subprocess.run([*SMELT, "convert", bench.source, bench.f16, "--force", "-q", *bench.context], check=True)
    bench.results |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}, {options.threads} threads",
        "load": [round(number, 1) for number in os.getloadavg()],
        "versions": {name: version(name) for name in ("smelt", "numba", "numpy", "llama-cpp-python", "gguf", "torch")},
        "f16_gguf_bytes": Path(bench.f16).stat().st_size,
    }
    parts = {"quantize": bench.quantize, "one_pass": bench.one_pass, "copy": bench.copy, "open": bench.open}
    for part in options.only.split(","):
        parts[part]()
    Path(bench.f16).unlink()
    Path(f"{bench.f16}.smelt.json").unlink()
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=1) + "\n")


if __name__ == "__main__":
    main()
