"""How close the GPU kernels come to the card's memory: bytes moved per second, as a share of a plain copy's.

    python benchmarks/gpu.py [--json FILE] [--rows N] [--types NAME ...]

    bytes moved   = the rows read and the blocks written (encode), or the reverse (decode): each once
    copy          = a device-to-device copy of 4 GiB, read and write counted, measured in the same run
    pipeline      = the same rows from host memory and back to it, as `--device cuda` encodes them; bytes over the bus
    65B, Q4_K_M   = 65.3 G weights: 1/2 of attn_v and ffn_down and the output in Q6_K, all else in Q4_K; bfloat16 rows

Times are medians of CUDA events over inputs too large for the cache. Kernels are found in smelt/kernels/gpu, not listed. Peers
are measured where they are installed: bitsandbytes' NF4 and torchao's int4, which do less (no search) and say what a user
would otherwise wait for. Without a CUDA device the program says so, writes nothing and exits with 0; under Triton's
interpreter (TRITON_INTERPRET=1) it runs, to try the program itself, and its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

COLUMNS = 8192
COPY_BYTES = 4 << 30
# LLaMA-65B: 8192 wide, 22016 in the feed-forward, 80 layers of which Q4_K_M gives 40 more bits, vocabulary 32000
Q6_K_WEIGHTS = 40 * (8192 * 8192 + 8192 * 22016) + 32000 * 8192
WEIGHTS_65B = 80 * (4 * 8192 * 8192 + 3 * 8192 * 22016) + 2 * 32000 * 8192


@dataclass(frozen=True)
class Size:
    """What is measured: rows of `columns` weights on `device`, the median of `repeats` turns after as many as warm up."""

    rows: int
    columns: int
    device: str
    repeats: int


def seconds(action: Callable[[], object], size: Size) -> float:
    """The median time of `action` on the device, after a warm-up that also compiles."""
    for _ in range(min(3, size.repeats)):
        action()
    return statistics.median(elapsed(action, size.device) for _ in range(size.repeats))


def elapsed(action: Callable[[], object], device: str) -> float:
    if device == "cpu":
        begun = time.perf_counter()
        action()
        return time.perf_counter() - begun
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    action()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def copy_bandwidth(size: Size) -> float:
    """Bytes per second of a large copy, read plus written."""
    nbytes = COPY_BYTES if size.device == "cuda" else 1 << 20
    source = torch.empty(nbytes, dtype=torch.uint8, device=size.device).random_()
    target = torch.empty_like(source)
    return 2 * nbytes / seconds(lambda: target.copy_(source), size)


def measure_kernels(size: Size, types: Sequence[str]) -> list[dict[str, Any]]:
    """One line for each kernel, with bfloat16 rows and float32 rows."""
    from smelt.kernels.gpu.compile_check import modules

    importance = torch.rand(size.columns, device=size.device) + 0.1
    lines = []
    for name, module in modules().items():
        if types and name not in types:
            continue
        for dtype in (torch.bfloat16, torch.float32):
            rows = torch.randn(size.rows, size.columns, device=size.device).to(dtype)
            shape = (size.rows, module.DTYPE.row_nbytes(size.columns))
            packed = torch.zeros(shape, dtype=torch.uint8, device=size.device)
            actions: dict[str, Callable[[], object]] = {"decode": partial(module.decode, packed, dtype)}
            if hasattr(module, "encode"):
                actions["encode"] = partial(module.encode, rows)
            if hasattr(module, "ENCODE_WEIGHTED"):
                actions["encode, importance"] = partial(module.encode, rows, importance)
            moved = rows.nbytes + packed.nbytes
            for verb, action in actions.items():
                lines.append(line(f"{name} {verb}", str(dtype), rows.numel(), moved, seconds(action, size)))
    return lines


def measure_pipeline(size: Size, types: Sequence[str]) -> list[dict[str, Any]]:
    """From host memory through the card and back, one thread."""
    from smelt.dtypes import BF16, DTYPES
    from smelt.kernels.gpu.pipeline import Card

    card = Card(size.device)
    raw = torch.randn(size.rows, size.columns).bfloat16().view(torch.uint8).numpy()
    lines = []
    for name in ("q8_0", "q4_k"):
        if types and name not in types:
            continue
        dtype = DTYPES[name.upper()]
        moved = raw.nbytes + dtype.tensor_nbytes((size.rows, size.columns))
        time_taken = seconds(partial(card.encode, dtype, BF16, raw, None), size)
        lines.append(line(f"{name} pipeline", "bfloat16", size.rows * size.columns, moved, time_taken))
    return lines


def line(name: str, dtype: str, n_weights: int, moved: int, time: float) -> dict[str, Any]:
    return {
        "kernel": name,
        "rows": dtype.removeprefix("torch."),
        "seconds": time,
        "weights_per_second": n_weights / time,
        "bytes_per_second": moved / time,
    }


def measure_peers(size: Size) -> list[dict[str, Any]]:
    """bitsandbytes and torchao on the same bfloat16 rows, where they are installed."""
    rows = torch.randn(size.rows, size.columns, device="cuda", dtype=torch.bfloat16)
    moved = rows.nbytes + rows.numel() // 2
    lines = []
    if find_spec("bitsandbytes"):
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(rows, blocksize=64, quant_type="nf4")
        encode = seconds(lambda: quantize_4bit(rows, blocksize=64, quant_type="nf4"), size)
        decode = seconds(lambda: dequantize_4bit(packed, state), size)
        lines.append(line("bitsandbytes nf4 encode", "bfloat16", rows.numel(), moved, encode))
        lines.append(line("bitsandbytes nf4 decode", "bfloat16", rows.numel(), moved, decode))
    if find_spec("torchao"):
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        layer = torch.nn.Linear(size.columns, size.rows, bias=False, device="cuda", dtype=torch.bfloat16)

        def quantize() -> None:
            layer.weight = torch.nn.Parameter(rows, requires_grad=False)
            quantize_(layer, Int4WeightOnlyConfig(group_size=32))

        lines.append(line("torchao int4 encode", "bfloat16", rows.numel(), moved, seconds(quantize, size)))
    return lines


def seconds_of_65b(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Kernel seconds for all of LLaMA-65B as Q4_K_M, from the measured rates on bfloat16 rows; nothing where one is missing."""
    rate = {item["kernel"]: item["weights_per_second"] for item in lines if item["rows"] == "bfloat16"}
    return {
        verb: (WEIGHTS_65B - Q6_K_WEIGHTS) / rate[f"q4_k {verb}"] + Q6_K_WEIGHTS / rate[f"q6_k {verb}"]
        for verb in ("encode", "encode, importance", "decode")
        if {f"q4_k {verb}", f"q6_k {verb}"} <= set(rate)
    }


def versions() -> dict[str, str]:
    packages = ("smelt", "torch", "triton", "bitsandbytes", "torchao")
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages if find_spec(name) is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the GPU kernels against the card's copy bandwidth.")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--rows", type=int, default=32768, help="rows of each matrix (default 32768)")
    parser.add_argument("--columns", type=int, default=COLUMNS, help=f"weights of a row (default {COLUMNS})")
    parser.add_argument("--repeats", type=int, default=20, help="turns of which the median counts (default 20)")
    parser.add_argument("--types", nargs="*", default=(), help="number formats (default: all)")
    options = parser.parse_args()
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        print("not yet measured: no CUDA device")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size(options.rows, options.columns, device, options.repeats)
    copy = copy_bandwidth(size)
    lines = measure_kernels(size, options.types) + measure_pipeline(size, options.types)
    if device == "cuda":
        lines += measure_peers(size)
    whole = seconds_of_65b(lines)
    name = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter, whose times mean nothing"
    show(name, copy, lines, whole)
    if options.json:
        result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": name,
            "versions": versions(),
            "rows": options.rows,
            "columns": options.columns,
            "copy_bytes_per_second": copy,
            "kernels": lines,
            "seconds_65b_q4_k_m": whole,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(name: str, copy: float, lines: list[dict[str, Any]], whole: dict[str, float]) -> None:
    print(f"{name}: copy {copy / 1e9:.0f} GB/s")
    print(f"{'kernel':32} {'rows':9} {'ms':>9} {'G weights/s':>12} {'GB/s':>8} {'of copy':>8}")
    for item in lines:
        share = item["bytes_per_second"] / copy
        numbers = (item["seconds"] * 1e3, item["weights_per_second"] / 1e9, item["bytes_per_second"] / 1e9, share)
        print(
            f"{item['kernel']:32} {item['rows']:9} {numbers[0]:9.3f} {numbers[1]:12.1f} {numbers[2]:8.0f} {share:8.1%}"
        )
    if whole:
        print("65B as Q4_K_M, kernel seconds: " + ", ".join(f"{verb} {took:.2f}" for verb, took in whole.items()))


if __name__ == "__main__":
    main()
