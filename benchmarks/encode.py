"""Encode each block type on one thread: smelt against ggml's C, in the same run, as ratios.

    python benchmarks/encode.py [--rows 512] [--columns 4096] [--repeats 9] [TYPE ...]

Times are the thread's own CPU time, for the machine may be busy with other work. The two take turns, so that what such work
does to the caches disturbs both; the ratio is the median over the turns. The first call of each kernel, which compiles it or
loads it from the cache, is shown apart. Needs the llama-cpp-python package, whose libggml-base is called through ctypes.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import time
from pathlib import Path
from statistics import median

import numpy as np
from smelt.dtypes import DTYPES
from smelt.kernels.scheme import kernel

GGML_TYPES = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13}
GGML_TYPES |= {"q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40}
GGML_TYPES |= {"iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq3_s": 21, "iq2_s": 22, "iq1_m": 29}
NEED_IMPORTANCE = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs")  # ggml ends the process without it
ONLY_WITH = ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m")  # ggml ends the process where these have no importance
ONLY_WITHOUT = ("tq1_0", "tq2_0", "mxfp4", "nvfp4")


def load_ggml() -> ctypes.CDLL:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise SystemExit("benchmarks/encode.py needs llama-cpp-python: pip install llama-cpp-python")
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


def seconds(function, *arguments) -> float:
    start = time.thread_time()
    function(*arguments)
    return time.thread_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", metavar="TYPE", default=list(GGML_TYPES))
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    ggml = load_ggml()
    random = np.random.RandomState(0)
    rows = (random.standard_normal((options.rows, options.columns)) * 0.02).astype(np.float32)
    importance = (random.standard_normal(options.columns) ** 2).astype(np.float32)
    print(f"{'type':7} {'importance':10} {'smelt M/s':>10} {'ggml M/s':>10} {'ratio':>7} {'first call s':>13}")
    for name in options.types:
        dtype = DTYPES[name.upper()]
        module = kernel(dtype)
        out = np.empty((options.rows, dtype.row_nbytes(options.columns)), np.uint8)
        for given in (importance,) if name in NEED_IMPORTANCE else (None, importance):
            if name in (ONLY_WITH if given is None else ONLY_WITHOUT):
                continue
            pointer = None if given is None else given.ctypes.data
            first = seconds(module.encode, rows[:1], given)
            shape = (0, options.rows, options.columns)
            ours, theirs = [], []
            for _ in range(options.repeats):
                ours.append(seconds(module.encode, rows, given))
                theirs.append(
                    seconds(
                        ggml.ggml_quantize_chunk, GGML_TYPES[name], rows.ctypes.data, out.ctypes.data, *shape, pointer
                    )
                )
            ratio = median(b / a for a, b in zip(ours, theirs, strict=True))
            speeds = f"{rows.size / median(ours) / 1e6:10.1f} {rows.size / median(theirs) / 1e6:10.1f}"
            print(f"{name:7} {'no' if given is None else 'yes':10} {speeds} {ratio:7.2f} {first:13.2f}")


if __name__ == "__main__":
    main()
