"""How close the GPU kernels come to the card's memory: bytes moved per second, as a share of a plain copy's.

    python benchmarks/gpu.py [--json FILE] [--rows N]

    bytes moved   = the rows read and the blocks written (encode), or the reverse (decode): each once
    copy          = a device-to-device copy of 4 GiB, read and write counted, measured in the same run
    65B, Q4_K_M   = 65.3 G weights: 1/2 of attn_v and ffn_down and the output in Q6_K, all else in Q4_K; bfloat16 rows

Times are medians of CUDA events over inputs too large for the cache. Peers are measured where they are installed:
bitsandbytes' NF4 and torchao's int4, which do less (no search) and say what a user would otherwise wait for.
Without a CUDA device the program says so, writes nothing and exits with 0.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
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


def seconds(action: Callable[[], object], repeats: int = 20) -> float:
    """The median time of `action` on the device, after a warm-up that also compiles."""
    for _ in range(3):
        action()
    times = []
    for _ in range(repeats):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        action()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes per second of a large copy, read plus written."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / seconds(lambda: target.copy_(source))


def measure_kernels(n_rows: int) -> list[dict[str, Any]]:
    """One line for each kernel, with bfloat16 rows and float32 rows."""
    from smelt.kernels.gpu.compile_check import modules

    importance = torch.rand(COLUMNS, device="cuda") + 0.1
    lines = []
    for name, module in modules().items():
        for dtype in (torch.bfloat16, torch.float32):
            rows = torch.randn(n_rows, COLUMNS, device="cuda").to(dtype)
            packed = module.encode(rows)
            moved = rows.nbytes + packed.nbytes
            actions: dict[str, Callable[[], object]] = {
                "encode": partial(module.encode, rows),
                "encode, importance": partial(module.encode, rows, importance),
                "decode": partial(module.decode, packed, dtype),
            }
            for verb, action in actions.items():
                lines.append(line(f"{name} {verb}", str(dtype), rows.numel(), moved, seconds(action)))
    return lines


def line(name: str, dtype: str, n_weights: int, moved: int, time: float) -> dict[str, Any]:
    return {
        "kernel": name,
        "rows": dtype.removeprefix("torch."),
        "seconds": time,
        "weights_per_second": n_weights / time,
        "bytes_per_second": moved / time,
    }


def measure_peers(n_rows: int) -> list[dict[str, Any]]:
    """bitsandbytes and torchao on the same bfloat16 rows, where they are installed."""
    rows = torch.randn(n_rows, COLUMNS, device="cuda", dtype=torch.bfloat16)
    moved = rows.nbytes + rows.numel() // 2
    lines = []
    if find_spec("bitsandbytes"):
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        packed, state = quantize_4bit(rows, blocksize=64, quant_type="nf4")
        encode = seconds(lambda: quantize_4bit(rows, blocksize=64, quant_type="nf4"))
        decode = seconds(lambda: dequantize_4bit(packed, state))
        lines.append(line("bitsandbytes nf4 encode", "bfloat16", rows.numel(), moved, encode))
        lines.append(line("bitsandbytes nf4 decode", "bfloat16", rows.numel(), moved, decode))
    if find_spec("torchao"):
        from torchao.quantization import Int4WeightOnlyConfig, quantize_

        layer = torch.nn.Linear(COLUMNS, n_rows, bias=False, device="cuda", dtype=torch.bfloat16)

        def quantize() -> None:
            layer.weight = torch.nn.Parameter(rows, requires_grad=False)
            quantize_(layer, Int4WeightOnlyConfig(group_size=32))

        lines.append(line("torchao int4 encode", "bfloat16", rows.numel(), moved, seconds(quantize)))
    return lines


def seconds_of_65b(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Kernel seconds for all of LLaMA-65B as Q4_K_M, from the measured rates on bfloat16 rows."""
    rate = {item["kernel"]: item["weights_per_second"] for item in lines if item["rows"] == "bfloat16"}
    return {
        verb: (WEIGHTS_65B - Q6_K_WEIGHTS) / rate[f"q4_k {verb}"] + Q6_K_WEIGHTS / rate[f"q6_k {verb}"]
        for verb in ("encode", "encode, importance", "decode")
    }


def versions() -> dict[str, str]:
    packages = ("smelt", "torch", "triton", "bitsandbytes", "torchao")
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages if find_spec(name) is not None
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the GPU kernels against the card's copy bandwidth.")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--rows", type=int, default=32768, help=f"rows of {COLUMNS} weights (default 32768)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("not yet measured: no CUDA device")
        return
    copy = copy_bandwidth()
    lines = measure_kernels(options.rows) + measure_peers(options.rows)
    print(f"{torch.cuda.get_device_name()}: copy {copy / 1e9:.0f} GB/s")
    print(f"{'kernel':32} {'rows':9} {'ms':>9} {'G weights/s':>12} {'GB/s':>8} {'of copy':>8}")
    for item in lines:
        share = item["bytes_per_second"] / copy
        numbers = (item["seconds"] * 1e3, item["weights_per_second"] / 1e9, item["bytes_per_second"] / 1e9, share)
        print(
            f"{item['kernel']:32} {item['rows']:9} {numbers[0]:9.3f} {numbers[1]:12.1f} {numbers[2]:8.0f} {share:8.1%}"
        )
    whole = seconds_of_65b(lines)
    print("65B as Q4_K_M, kernel seconds: " + ", ".join(f"{verb} {time:.2f}" for verb, time in whole.items()))
    if options.json:
        result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name(),
            "versions": versions(),
            "copy_bytes_per_second": copy,
            "kernels": lines,
            "seconds_65b_q4_k_m": whole,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
