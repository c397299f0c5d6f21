"""Inputs that every kernel is tried on, ggml as an oracle, and the files in `data` that make the oracle unnecessary.

    data/trained.npz   one 32 x 256 matrix of a small trained Llama, fp16
    data/ggml.npz      ggml's bytes of the unsearched types; its plain and weighted errors of the searched ones
    data/smelt.npz     smelt's own bytes of the searched types: a changed search must be a decision, not an accident

RandomState is used because numpy promises that its streams never change. To write the files anew (needs
llama-cpp-python):  python tests/kernels/kernel_cases.py
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import numpy as np
from smelt.dtypes import DTYPES
from smelt.kernels.scheme import kernel

DATA = Path(__file__).with_name("data")
GGML_TYPES = {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13}
GGML_TYPES |= {"q6_k": 14, "iq4_nl": 20, "iq4_xs": 23, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40}
GGML_TYPES |= {"iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq3_s": 21, "iq2_s": 22, "iq1_m": 29}
EXACT = (
    "q4_0",
    "q4_1",
    "q5_0",
    "q5_1",
    "q8_0",
    "mxfp4",
    "nvfp4",
    "tq1_0",
    "tq2_0",
)  # byte for byte ggml's, without importance
ALWAYS_SEARCHED = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
CODEBOOK = ("iq2_s", "iq3_s", "iq3_xxs", "iq2_xxs", "iq2_xs", "iq1_s", "iq1_m")  # all after the third need importance
SEARCHED = (  # type, with importance
    *(
        (name, with_importance)
        for name in CODEBOOK
        for with_importance in (False, True)
        if with_importance or name not in CODEBOOK[3:]
    ),
    *((name, True) for name in ("q4_0", "q4_1", "q5_0", "q5_1")),
    *((name, with_importance) for name in ALWAYS_SEARCHED for with_importance in (False, True)),
)


def matrices(rows=24, columns=1024, seed=0):
    """Weights as they occur, and worse: name -> float32[rows, columns]."""
    random = np.random.RandomState(seed)
    shape = (rows, columns)
    found = {
        "normal": random.standard_normal(shape) * 0.02,
        "student-3": random.standard_t(3, shape) * 0.02,
        "student-5": random.standard_t(5, shape) * 0.02,
        "laplace": random.laplace(size=shape) * 0.01,
        "uniform": random.uniform(-0.05, 0.05, shape),
        "shifted": random.standard_normal(shape) * 0.02 + 0.03,
    }
    outliers = random.standard_normal(shape) * 0.02
    found["outliers"] = np.where(random.uniform(size=shape) < 0.002, outliers * 20, outliers)
    found["trained"] = np.load(DATA / "trained.npz")["rows"]
    return {name: matrix.astype(np.float32) for name, matrix in found.items()}


def importances(columns, seed=0):
    """Mean squared activations as they occur: name -> float32[columns]."""
    random = np.random.RandomState(seed + 1000)
    found = {
        "chi-square": random.standard_normal(columns) ** 2,
        "log-normal": np.exp(random.standard_normal(columns) * 1.5),
        "mild": 0.5 + random.uniform(size=columns),
        "flat": np.ones(columns),
    }
    return {name: vector.astype(np.float32) for name, vector in found.items()}


def ggml_weights(name, rows, importance):
    """The weights of the error that ggml's own search of this type minimises, float64[rows, columns]."""
    rows = rows.astype(np.float64)
    squares = rows * rows
    if name == "q6_k" and importance is not None:
        return np.broadcast_to(importance, rows.shape)
    if importance is None:
        if name in ("q3_k", "q6_k", "iq3_s", "iq3_xxs", "iq4_nl", "iq4_xs"):
            return squares
        if name == "iq2_s":
            supers = squares.reshape(len(rows), -1, 256)
            return (0.5 * supers.mean(axis=2, keepdims=True) + supers).reshape(rows.shape)
        if name == "q2_k":  # whose search minimises the absolute error under these weights
            return np.sqrt(squares)
        blocks = squares.reshape(len(rows), -1, 32)
        return (np.sqrt(blocks.mean(axis=2, keepdims=True)) + np.sqrt(blocks)).reshape(rows.shape)
    if name in ("q4_0", "q4_1", "q5_0", "q5_1"):
        return importance * np.sqrt(squares.mean(axis=1, keepdims=True) + squares)
    blocks = squares.reshape(len(rows), -1, 32 if name == "iq4_nl" else 256)
    means = blocks.mean(axis=2, keepdims=True) * (1 if name in ("q2_k", "iq2_xxs", "iq2_xs") else 2)
    return importance * np.sqrt(means + blocks).reshape(rows.shape)


def errors(name, rows, importance, packed):
    """(plain, weighted) sums of squares of what `packed` loses of `rows`."""
    squares = (kernel(DTYPES[name.upper()]).decode(packed).astype(np.float64) - rows) ** 2
    return squares.sum(), (ggml_weights(name, rows, importance) * squares).sum()


def searched_cases(name, with_importance, **shape):
    """(label, rows, importance) of every matrix and every importance that this search is tried on."""
    for label, all_rows in matrices(**shape).items():
        rows = all_rows[::4] if name in CODEBOOK else all_rows  # ggml takes its time
        chosen = importances(rows.shape[1]) if with_importance else {"none": None}
        for kind, importance in chosen.items():
            yield f"{name} {label} {kind}", rows, importance


def load_ggml():
    """A function (type name, rows, importance) -> ggml's bytes, or None where llama-cpp-python is not installed."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        return None
    library = ctypes.CDLL(str(next((Path(spec.origin).parent / "lib").glob("libggml-base.*"))))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(name, rows, importance=None):
        rows = np.ascontiguousarray(rows, np.float32)
        packed = np.empty((len(rows), DTYPES[name.upper()].row_nbytes(rows.shape[1])), np.uint8)
        pointer = None if importance is None else importance.ctypes.data
        chunk(GGML_TYPES[name], rows.ctypes.data, packed.ctypes.data, 0, *rows.shape, pointer)
        return packed

    return quantize


def write_data():
    """ggml.npz and smelt.npz."""
    ggml = load_ggml()
    sample = matrices(rows=3, columns=512, seed=7)["student-5"]
    importance = importances(512)["log-normal"]
    theirs = {name: ggml(name, sample) for name in EXACT}
    ours = {}
    for name, with_importance in SEARCHED:
        key = f"{name} {'importance' if with_importance else 'plain'}"
        given = importance if with_importance else None
        ours[key] = kernel(DTYPES[name.upper()]).encode(sample, given)
        for label, rows, case in searched_cases(name, with_importance):
            theirs[f"errors {label}"] = np.array(errors(name, rows, case, ggml(name, rows, case)))
    np.savez_compressed(DATA / "ggml.npz", **theirs)
    np.savez_compressed(DATA / "smelt.npz", **ours)


if __name__ == "__main__":
    write_data()
