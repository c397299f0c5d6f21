"""Peak anonymous memory and throughput of whole commands on a large checkpoint.

    python benchmarks/make_synthetic.py /data/synthetic-7b
    python benchmarks/memory.py /data/synthetic-7b /data/out [--json results.json]

Runs `smelt convert` (to safetensors), `quantize` (Q4_K_M) and `validate` (f16 against Q4_K_M, two chunks of 512), each in a
process of its own, and watches RssAnon in /proc/PID/status every 10 ms: page cache does not count, everything that
smelt allocates does. Linux only. Needs about twice the checkpoint's size on disk.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

TEXT = "Nobody reads the text that a random model is asked about, but it has to be long enough. " * 120


def watch(words: list[str]) -> dict[str, float]:
    """Run a command; {seconds, user and system CPU seconds, peak anonymous MiB, exit code}."""
    started, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-P", "-m", "smelt", *words], stdout=subprocess.DEVNULL)
    status = Path(f"/proc/{process.pid}/status")
    cpu = 0.0
    while process.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            times = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            break
        peak = max(peak, int(fields.get("RssAnon", "0 kB").split()[0]))
        cpu = (int(times[11]) + int(times[12])) / 100
        time.sleep(0.01)
    code = process.wait()
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_anonymous_mib": round(peak / 1024),
        "exit_code": code,
    }


def main() -> None:
    """Run the three commands and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["convert", "quantize", "validate"], action="append")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder, shrunk, text = options.out / "hf", options.out / "q4_k_m.gguf", options.out / "text.txt"
    text.write_text(TEXT)
    context = ["--context-length", "2048"]
    nbytes = sum(path.stat().st_size for path in options.source.glob("*.pth"))
    commands = {
        "convert": ["convert", str(options.source), str(folder), "--force", *context],
        "quantize": ["quantize", str(options.source), str(shrunk), "--scheme", "q4_k_m", "--force", *context],
        "validate": ["validate", str(options.source), str(shrunk), "--text", str(text), "--chunks", "2", *context],
    }
    results: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "smelt": version("smelt"),
        "numba": version("numba"),
        "torch": version("torch"),
        "source_bytes": nbytes,
    }
    for name, words in commands.items():
        if options.only and name not in options.only:
            continue
        found = watch(words)
        results[name] = found
        rate = nbytes / 1e6 / max(0.1, found["seconds"])
        peak = found["peak_anonymous_mib"]
        print(f"{name:9} {found['seconds']:8.1f} s  {rate:7.0f} MB/s of source  {peak:6} MiB peak", flush=True)
        if name == "convert":
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
