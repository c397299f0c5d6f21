"""Meta's FP8 release: feed-forward weights as float8_e4m3fn, their row scales in files beside the shards.

    consolidated.NN.pth   layers.3.feed_forward.w1.weight       float8_e4m3fn[rows, columns]
    fp8_scales_N.pt       "3_feed_forward.w1_N"                 float32[rows]
    weight[r, c] = w[r, c] * scale[r]                           one float32 product, rounded once to BF16

Only the layers between the first and the last are so stored. w2 is divided along its columns, and each shard scales its
own part of a row: shards are multiplied out before they are joined. BF16 is what the other weights of the release are.
Source: meta-llama/llama-models (models/llama3/quantization/loader.py, models/quantize_impls.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..dtypes import BF16, DTYPES, F32, matrix_shape
from ..errors import InputError, ModelError
from ..formats.checkpoint import Bytes, StoredTensor
from ..formats.pth import open_pth
from ..kernels.scheme import cast_scheme, decode
from .model import LazyTensor

SCALES = re.compile(r"fp8_scales_(\d{1,3})\.pt")
KEY = re.compile(r"(?P<layer>\d{1,4})_(?P<part>feed_forward\.w[123])_(?P<rank>\d{1,3})")
F8 = DTYPES["F8_E4M3"]

Scales = Mapping[str, StoredTensor]


def open_scales(folder: Path, n_shards: int) -> list[Scales] | None:
    """{Meta name: its rows' scales} of each shard; None where the folder has none. InputError names a missing file."""
    ranks = {int(m[1]) for path in folder.iterdir() if (m := SCALES.fullmatch(path.name))}
    if not ranks:
        return None
    if different := sorted(ranks ^ set(range(n_shards))):
        state = "missing" if different[0] not in ranks else "of no shard"
        raise InputError(
            f"{folder}: fp8_scales_{different[0]}.pt is {state}: there are {n_shards} shards, each with its own scales"
        )
    return [_read_scales(folder / f"fp8_scales_{rank}.pt", rank) for rank in range(n_shards)]


def _read_scales(path: Path, rank: int) -> Scales:
    found = {}
    for key, tensor in open_pth(path).tensors.items():
        match = KEY.fullmatch(key)
        if match is None or int(match["rank"]) != rank:
            raise ModelError(
                f"{path}: {key[:80]!a} names no scales of shard {rank}, such as '1_feed_forward.w1_{rank}'"
            )
        if tensor.dtype != F32:
            raise ModelError(f"{path}: {key} is {tensor.dtype}, wanted F32")
        found[f"layers.{int(match['layer'])}.{match['part']}.weight"] = tensor
    return found


def multiplied_out(path: Path, shard: Mapping[str, LazyTensor], scales: Scales) -> dict[str, LazyTensor]:
    """A shard's tensors, those with scales as BF16. ModelError lists FP8 weights without scales and scales without weights."""
    bare = [name for name, tensor in shard.items() if tensor.dtype == F8 and name not in scales]
    if bare:
        raise ModelError(f"{path}: {len(bare)} FP8 weights have no scales beside them: {', '.join(bare)}")
    if lost := sorted(set(scales) - set(shard)):
        raise ModelError(f"{path}: there are scales for {', '.join(lost)}, which the shard does not hold")
    return {name: _scaled(path, tensor, scales[name]) if name in scales else tensor for name, tensor in shard.items()}


def _scaled(path: Path, tensor: LazyTensor, scales: StoredTensor) -> LazyTensor:
    rows, _ = tensor.matrix_shape
    if scales.nbytes != rows * F32.nbytes:
        raise ModelError(f"{path}: {tensor.name} has {rows} rows, its scales {list(scales.shape)}")
    round_to = cast_scheme(BF16)

    def read(start_row: int, stop_row: int) -> Bytes:
        factors = scales.read(0, matrix_shape(scales.shape)[0]).reshape(-1).view(np.float32)[start_row:stop_row]
        values = decode(tensor.dtype, tensor.read(start_row, stop_row)) * factors[:, None]
        return round_to.encode(values, None)[""]

    return replace(tensor, dtype=BF16, read=read)
