"""What comes out computes what went in: logits of real clients against each other, and against an independent Meta forward.

    pytest tests/convert/test_logits.py -m "long or not long" --write-tables        writes the table of docs/dialects.md anew

That transformers' own logits are the same bits after every conversion is measured in test_matrix.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from meta_checkpoints import meta_forward, read_meta, write_meta
from smelt.api import convert
from smelt.convert.architecture import families, family_by
from smelt.convert.options import OpenOptions

from . import tables
from .clients import llama_cpp_logits, transformers_logits
from .small_models import SMALL, is_of_llama_cpp, write

OPTIONS = OpenOptions(context_length=128)
TOKENS = torch.tensor([1, *range(5, 101)])
TABLE = "llama.cpp"
CONTEXT = 1024
TEXTS = [torch.randint(3, 512, (CONTEXT,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
OF_LLAMA_CPP = [name for name in SMALL if is_of_llama_cpp(family_by("name", SMALL[name].family, name))]
LONG = ("llama, biases", "qwen2, tied", "bloom, six heads", "llama, linear", "llama, dynamic", "gemma3, linear")
NAMES = [pytest.param(name, marks=[pytest.mark.long] if name in LONG else []) for name in OF_LLAMA_CPP]

SHAPES = [
    pytest.param({"n_shards": shards, "n_kv_heads": kv, "dtype": dtype, **more}, id=f"{shards}shard-{name}-{dtype}")
    for shards in (1, 2, 4)
    for kv, name in ((None, "mha"), (4, "gqa"))
    for dtype, more in (
        (torch.float16, {}),
        (torch.bfloat16, {"shared_storage": True}),
    )
]


@pytest.mark.parametrize("shape", SHAPES)
def test_safetensors_gives_the_logits_of_metas_forward(tmp_path: Path, shape: dict[str, object]) -> None:
    written = write_meta(tmp_path / "meta", dim=64, n_heads=8, **shape)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    expected = meta_forward({key: t.float() for key, t in written.state.items()}, written.params, TOKENS)
    assert (transformers_logits(tmp_path / "hf", TOKENS).double() - expected).abs().max() < 1e-4


def test_the_bundled_model_gives_the_logits_of_metas_forward(tiny_llama: Path, tmp_path: Path) -> None:
    convert(tiny_llama, tmp_path / "hf", options=OpenOptions(context_length=512))
    state, params = read_meta(tiny_llama)
    expected = meta_forward({key: t.float() for key, t in state.items()}, params, TOKENS)
    assert (transformers_logits(tmp_path / "hf", TOKENS).double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_agrees_with_transformers_and_the_table_says_so(
    tmp_path: Path, name: str, write_tables: bool
) -> None:
    source = write(tmp_path / "hf", name, max_position_embeddings=CONTEXT)
    convert(source, tmp_path / "m.gguf", dtype="f32")
    largest, difference, same = 0.0, 0.0, []
    for text in TEXTS:
        expected, got = transformers_logits(source, text), llama_cpp_logits(tmp_path / "m.gguf", text)
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((got - expected).abs().max()))
        same += (got.argmax(1) == expected.argmax(1)).tolist()
    assert difference < 1e-3 and np.mean(same) >= 0.999
    cells = [f"{len(same)}", f"{largest:.1f}", f"{difference:.0e}", f"{100 * np.mean(same):.2f} %"]
    if write_tables:
        tables.write_row(TABLE, name, cells, OF_LLAMA_CPP)
    row = tables.rows(TABLE)[name]
    assert row[0] == cells[0] and abs(float(row[1]) - largest) <= 0.1 and float(row[3].rstrip(" %")) >= 99.9
    assert 0.1 <= float(row[2]) / difference <= 10  # another CPU adds in another order


def test_the_table_has_a_row_for_every_family_that_llama_cpp_knows() -> None:
    assert list(tables.rows(TABLE)) == OF_LLAMA_CPP
    assert {SMALL[name].family for name in OF_LLAMA_CPP} == {family.name for family in families()} - {"opt"}


@pytest.mark.parametrize("kv_heads", [None, 4])
def test_llama_cpp_gives_the_logits_of_transformers_from_metas_files(tmp_path: Path, kv_heads: int | None) -> None:
    write_meta(tmp_path / "meta", dim=64, n_heads=8, n_kv_heads=kv_heads, n_shards=2)
    convert(tmp_path / "meta", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "meta", tmp_path / "m.gguf", dtype="f32", options=OPTIONS)
    expected, got = transformers_logits(tmp_path / "hf", TOKENS), llama_cpp_logits(tmp_path / "m.gguf", TOKENS)
    assert (got - expected).abs().max() < 1e-3
    assert torch.equal(got.argmax(1), expected.argmax(1))


def test_llama_cpp_reads_the_same_token_ids(tiny_llama: Path, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed: pip install smelt[clients]")
    import sentencepiece

    convert(tiny_llama, tmp_path / "model.gguf", options=OpenOptions(context_length=512))
    client = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tiny_llama / "tokenizer.model"))
    lines = (tiny_llama / "heldout.txt").read_text(encoding="utf-8").splitlines()[:400]
    for line in lines:
        assert client.tokenize(line.encode(), add_bos=True, special=False) == [1, *processor.encode(line)]
