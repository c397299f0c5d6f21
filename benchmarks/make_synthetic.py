"""Write a LLaMA-7B-shaped checkpoint in Meta's format, of random weights: something large to measure with.

    python benchmarks/make_synthetic.py FOLDER [--layers N] [--shards N]          32 layers, 2 shards: 13.5 GB, fp16

    FOLDER/consolidated.NN.pth   the zip that torch.save writes: data.pkl, then one stored, 64-byte aligned entry a tensor
    FOLDER/params.json  FOLDER/tokenizer.model   32000 pieces, trained on Python's standard library

Weights are normal with standard deviation 1 / sqrt(inputs), so that activations keep their size through the layers and
every scheme sees the distribution it would see. They come from one pool of random numbers per deviation, read round and
round: its length is prime, so that rows fall differently in each round. The seed is fixed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import sentencepiece
import torch

DIM, FFN, N_HEADS, VOCAB = 4096, 11008, 32, 32000
POOL = 16_777_213  # a prime just below 2^24
ALIGNMENT = 64


def tensors(n_layers: int, n_shards: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """{Meta's key: (one shard's shape, standard deviation)}; a deviation of 0 marks a norm."""
    narrow, ffn = DIM // n_shards, FFN // n_shards
    by_dim, by_ffn = 1 / math.sqrt(DIM), 1 / math.sqrt(FFN)
    table: dict[str, tuple[tuple[int, ...], float]] = {"tok_embeddings.weight": ((VOCAB, narrow), by_dim)}
    for layer in range(n_layers):
        prefix = f"layers.{layer}."
        for name in ("wq", "wk", "wv"):
            table[f"{prefix}attention.{name}.weight"] = ((narrow, DIM), by_dim)
        table[f"{prefix}attention.wo.weight"] = ((DIM, narrow), by_dim)
        table[f"{prefix}feed_forward.w1.weight"] = ((ffn, DIM), by_dim)
        table[f"{prefix}feed_forward.w2.weight"] = ((DIM, ffn), by_ffn)
        table[f"{prefix}feed_forward.w3.weight"] = ((ffn, DIM), by_dim)
        table[f"{prefix}attention_norm.weight"] = ((DIM,), 0.0)
        table[f"{prefix}ffn_norm.weight"] = ((DIM,), 0.0)
    table["norm.weight"] = ((DIM,), 0.0)
    table["output.weight"] = ((VOCAB // n_shards, DIM), by_dim)
    return table


class Pool:
    """A ring of fp16 random numbers for each standard deviation; every read goes on where the last one stopped."""

    def __init__(self, seed: int) -> None:
        self.normal = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32)
        self.scaled: dict[float, np.ndarray] = {}
        self.position = 0

    def read(self, count: int, deviation: float) -> Iterator[memoryview]:
        """`count` numbers as bytes, in pieces."""
        if deviation not in self.scaled:
            mean, spread = (0.0, deviation) if deviation else (1.0, 0.1)
            self.scaled[deviation] = (mean + self.normal * np.float32(spread)).astype("<f2")
        ring = self.scaled[deviation]
        while count:
            piece = ring[self.position : self.position + count]
            self.position = (self.position + len(piece)) % POOL
            count -= len(piece)
            yield piece.data.cast("B")


class StatePickler(pickle.Pickler):
    """Pickles tensors as torch.save does: each storage becomes a reference by number, written elsewhere."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.n_storages = 0

    def persistent_id(self, value: object) -> tuple[str, type, str, str, int] | None:
        """('storage', type, key, location, elements) for a storage, None for all else."""
        if not isinstance(value, torch.storage.TypedStorage):
            return None
        self.n_storages += 1
        return "storage", torch.HalfStorage, str(self.n_storages - 1), "cpu", value._size()


def pickled_state(table: dict[str, tuple[tuple[int, ...], float]]) -> bytes:
    """data.pkl of a state dict of contiguous fp16 tensors. Their memory is reserved, never touched."""
    file = io.BytesIO()
    state = {key: torch.empty(shape, dtype=torch.float16) for key, (shape, _) in table.items()}
    StatePickler(file).dump(state)
    return file.getvalue()


def aligned_entry(archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
    """The next entry of `archive`, its bytes placed on a multiple of ALIGNMENT by an extra field, as torch does."""
    entry = zipfile.ZipInfo(name)
    entry.file_size = size
    position = archive.start_dir + 30 + len(name) + 4  # local header, name, the extra field's id and length
    padding = -position % ALIGNMENT
    entry.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return entry


def write_shard(path: Path, table: dict[str, tuple[tuple[int, ...], float]], pool: Pool) -> None:
    """One consolidated.NN.pth."""
    top = path.stem
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{top}/data.pkl", pickled_state(table))
        archive.writestr(f"{top}/byteorder", "little")
        for index, (shape, deviation) in enumerate(table.values()):
            count = math.prod(shape)
            with archive.open(aligned_entry(archive, f"{top}/data/{index}", 2 * count), "w") as entry:
                for piece in pool.read(count, deviation):
                    entry.write(piece)
        archive.writestr(f"{top}/version", "3\n")


def train_tokenizer() -> bytes:
    """A SentencePiece BPE model of VOCAB pieces with LLaMA's settings."""
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) + sorted(
        Path(sysconfig.get_path("stdlib")).glob("[a-z]*/*.py")
    )
    texts = (path.read_text(encoding="utf-8") for path in sources if path.parent.name != "test")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB,
        character_coverage=0.9999,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        byte_fallback=True,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--shards", type=int, default=2, choices=(1, 2, 4, 8))
    options = parser.parse_args()
    begun = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    params = {"dim": DIM, "multiple_of": 256, "n_heads": N_HEADS, "n_layers": options.layers, "norm_eps": 1e-06}
    (options.folder / "params.json").write_text(json.dumps({**params, "vocab_size": -1}), encoding="utf-8")
    (options.folder / "tokenizer.model").write_bytes(train_tokenizer())
    print(f"tokenizer, {time.perf_counter() - begun:.1f} s", flush=True)
    pool = Pool(seed=0)
    table = tensors(options.layers, options.shards)
    for rank in range(options.shards):
        path = options.folder / f"consolidated.{rank:02d}.pth"
        write_shard(path, table, pool)
        print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB, {time.perf_counter() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
