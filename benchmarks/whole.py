"""Whole commands against their peers, start-up included: quantize, copy, open, help.

    python benchmarks/make_synthetic.py /data/synthetic-2 --layers 2 --shards 1
    python benchmarks/whole.py /data/synthetic-2 /data/out --threads 2 [--json results.json] [--runs 3] [--only copy,open]

quantize  smelt from an f16 GGUF of 1.3 GB against llama.cpp's llama_model_quantize (llama-cpp-python), same threads
one pass  smelt from the Meta folder itself, against an f16 GGUF by torch and gguf.GGUFWriter (make_gguf.py) and then llama.cpp
copy      `smelt convert` at the same dtype, f16 GGUF <-> safetensors and to its own format, against `cp` of a file of the same
          size, and against `cp` and `sync -d` of the copy, which is what smelt does: it has its output on the disk before it
          gives it its name
open      open_gguf of a 70B-shaped file against gguf.GGUFReader; `smelt --help`; what starting each side costs

All sides run in turn, A B C A B C, after one warm-up of each. Before each command the disk has nothing left to write, and the
source has just been read, so that all find it in the page cache; the clock stops when the command ends. Medians, and the
median of the ratios within a turn, are printed: of wall time, and of the CPU time of the command's own processes (user and
system; what the kernel writes back later counts for neither side), which other work on the machine disturbs less.
Python's compiled modules are kept between runs, as an installed program's are.
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
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import median

FILE_TYPES = {"q4_k_m": 15, "q8_0": 7, "q4_0": 2}
LLAMA = (
    "import sys, llama_cpp; p = llama_cpp.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]);"
    "p.nthread = int(sys.argv[4]); sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
)
PAUSE = 5  # seconds: a virtual machine's host takes freed memory back, then all sides find the same state
SMELT = [sys.executable, "-P", "-m", "smelt"]
PIECE = 64 << 20  # bytes read at once to have a file in the page cache

Seconds = tuple[float, float]  # wall, CPU
Timed = Callable[[], Seconds]


@cache
def environment() -> dict[str, str]:
    """Ours, with a folder of this run's own for compiled modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": tempfile.mkdtemp(prefix="smelt-whole-")}


def read_through(path: Path) -> None:
    """Read a file, or every file of a folder, and keep nothing but its pages in the cache."""
    for file in (path,) if path.is_file() else sorted(path.iterdir()):
        with file.open("rb", buffering=0) as opened:
            while opened.read(PIECE):
                pass


def timed(steps: list[list[str]], leftovers: list[Path], source: Path | None = None) -> Seconds:
    """Seconds of commands, one after the other; what they wrote is removed outside the clock."""
    os.sync()
    time.sleep(PAUSE)
    if source is not None:
        read_through(source)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    for words in steps:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    wall = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in leftovers:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".smelt.json").unlink(missing_ok=True)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turn(ours: Timed, peers: dict[str, Timed], runs: int) -> dict[str, dict[str, float]]:
    """Each peer beside smelt, in turns after a warm-up; a ratio above 1 means that smelt is faster."""
    sides = [ours, *peers.values()]
    for side in sides:
        side()
    turns = [[side() for side in sides] for _ in range(runs)]
    return {name: compared([(turn[0], turn[k]) for turn in turns]) for k, name in enumerate(peers, 1)}


def compared(pairs: list[tuple[Seconds, Seconds]]) -> dict[str, float]:
    """Medians of both sides, and of their ratios."""
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

    return in_turn(lambda: clock(open_gguf), {"reader": lambda: clock(GGUFReader)}, min(runs, 2))["reader"]


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

    def compare(self, ours: list[str], source: str, peers: dict[str, list[list[str]]]) -> None:
        """`smelt <ours>`, which writes self.ours, in turn with each peer's commands, which write self.theirs."""
        leftovers = [self.ours, self.theirs, self.between]

        def side(steps: list[list[str]]) -> Timed:
            return lambda: timed(steps, leftovers, Path(source))

        mine = side([[*SMELT, *ours, "-q", *self.threads]])
        found = in_turn(mine, {name: side(steps) for name, steps in peers.items()}, self.options.runs)
        for name, pair in found.items():
            self.show(name, pair)

    def llama(self, source: str, scheme: str) -> list[str]:
        """The command by which llama.cpp's library quantizes."""
        number = str(FILE_TYPES[scheme])
        return [sys.executable, "-P", "-c", LLAMA, source, str(self.theirs), number, str(self.options.threads)]

    def quantize(self) -> None:
        """From an f16 GGUF."""
        for scheme in FILE_TYPES:
            mine = ["quantize", self.f16, str(self.ours), "--scheme", scheme]
            self.compare(mine, self.f16, {f"quantize {scheme}": [self.llama(self.f16, scheme)]})

    def one_pass(self) -> None:
        """From the Meta folder; the peer in two steps."""
        mine = ["quantize", self.source, str(self.ours), "--scheme", "q4_k_m", *self.context]
        first = [sys.executable, "-P", str(Path(__file__).with_name("make_gguf.py")), self.source, str(self.between)]
        steps = [first, self.llama(str(self.between), "q4_k_m")]
        self.compare(mine, self.source, {"Meta to q4_k_m": steps})

    def copy(self) -> None:
        """At the stored dtype. `cp` copies what smelt reads: the weights' file, whose size is the target's but for headers."""
        folder = self.options.out / "hugging-face"
        subprocess.run([*SMELT, "convert", self.f16, str(folder), "--force", "-q"], check=True, env=environment())
        self.ours = self.options.out / "ours"
        weights = str(folder / "model.safetensors")
        cases = {
            "GGUF to safetensors": (["convert", self.f16, str(self.ours)], self.f16),
            "safetensors to GGUF": (["convert", str(folder), str(self.ours), "--to", "gguf"], weights),
            "GGUF to GGUF": (["convert", self.f16, str(self.ours), "--to", "gguf"], self.f16),
            "safetensors to safetensors": (["convert", str(folder), str(self.ours)], weights),
        }
        for name, (mine, like) in cases.items():
            copied = ["cp", like, str(self.theirs)]
            peers = {f"{name}, cp": [copied], f"{name}, cp and sync": [copied, ["sync", "-d", str(self.theirs)]]}
            self.compare(mine, like, peers)
        shutil.rmtree(folder)

    def open(self) -> None:
        """Headers, the help page, and what both sides' programs cost before they do anything."""
        shape = self.options.out / "shape70b.gguf"
        header_of_70b(shape)
        self.show("open 70B header", open_both(shape, self.options.runs))
        shape.unlink()
        plan = [*SMELT, "convert", self.f16, str(self.options.out / "none"), "--dry-run", "-q"]
        starts = {
            "smelt --help": [*SMELT, "--help"],
            "smelt convert --dry-run": plan,
            "import llama_cpp": [sys.executable, "-P", "-c", "import llama_cpp"],
        }
        for name, words in starts.items():
            found = [timed([words], []) for _ in range(5)]
            wall, cpu = median(wall for wall, _ in found), median(cpu for _, cpu in found)
            self.results[name] = {"seconds": round(wall, 3), "cpu_seconds": round(cpu, 3)}
            print(f"{name:34} wall {wall:8.3f} s {'':26} CPU {cpu:7.2f} s", flush=True)


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
    making = [*SMELT, "convert", bench.source, bench.f16, "--force", "-q", *bench.context]
    subprocess.run(making, check=True, env=environment())
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
    shutil.rmtree(environment()["PYTHONPYCACHEPREFIX"], ignore_errors=True)
    bench.results["load at the end"] = [round(number, 1) for number in os.getloadavg()]
    if options.json:
        options.json.write_text(json.dumps(bench.results, indent=1) + "\n")


if __name__ == "__main__":
    main()
