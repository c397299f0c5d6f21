"""Meta's folder as a target: what torch opens, shard by shard, is what Meta's own layers would hold."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_checkpoints import MetaCheckpoint, meta_forward, read_meta, shard_meta, write_meta
from smelt.api import convert, convert_plan, diff, open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.convert.run import RunOptions, run
from smelt.errors import InputError, ModelError, UsageError
from smelt.formats.pth import check_crc

OPTIONS = OpenOptions(context_length=128)
TOKENS = torch.tensor([1, *range(5, 40)])


def load(path: Path) -> dict[str, torch.Tensor]:
    """As Meta's loader does, from the map of the file."""
    found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


def same_bits(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


def assert_shards(folder: Path, source: MetaCheckpoint, n_shards: int, **split: int) -> None:
    """Every shard of `folder` holds what fairscale's layers would, and nothing else."""
    for rank, wanted in enumerate(shard_meta(source.state, n_shards, **split)):
        found = load(folder / f"consolidated.{rank:02d}.pth")
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert same_bits(found[key], tensor), (rank, key)
    assert not (folder / f"consolidated.{n_shards:02d}.pth").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n_kv_heads", [None, 4])
@pytest.mark.parametrize("n_shards", [1, 2, 4])
def test_torch_opens_the_shards_that_metas_layers_would_hold(
    tmp_path: Path, n_shards: int, n_kv_heads: int | None, dtype: torch.dtype
) -> None:
    source = write_meta(tmp_path / "a", n_heads=8, n_kv_heads=n_kv_heads, dtype=dtype, n_shards=2)
    convert(tmp_path / "a", tmp_path / "b", to="meta", n_shards=n_shards, options=OPTIONS)
    assert_shards(tmp_path / "b", source, n_shards)
    assert diff(tmp_path / "a", tmp_path / "b").equal


def test_the_folder_is_one_that_metas_forward_takes(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", n_kv_heads=2)
    convert(tmp_path / "a", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "hf", tmp_path / "b", to="meta", n_shards=2)
    state, params = read_meta(tmp_path / "b")
    assert torch.equal(meta_forward(state, params, TOKENS), meta_forward(source.state, source.params, TOKENS))


def test_every_checksum_is_right(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", n_kv_heads=2)
    plan = convert_plan(tmp_path / "a", tmp_path / "b", to="meta", n_shards=2, options=OPTIONS)
    run(plan, RunOptions(3, slab=700))  # small slabs: each tensor's checksum is put together of many
    lines = (tmp_path / "b" / "checklist.chk").read_text().splitlines()
    assert [line[34:] for line in lines] == [
        *("consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model")
    ]
    for line in lines:
        path = tmp_path / "b" / line[34:]
        assert line == f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}"
        if path.suffix == ".pth":
            check_crc(path)
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None


def test_threads_and_slabs_never_show_in_a_meta_folder(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", n_shards=2)
    outputs = []
    for threads, slab in ((1, 1 << 20), (2, 64), (5, 1000), (3, 1)):
        target = tmp_path / f"{threads}"
        run(
            convert_plan(tmp_path / "a", target, to="meta", n_shards=4, options=OPTIONS), RunOptions(threads, slab=slab)
        )
        outputs.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert all(output == outputs[0] for output in outputs)


def test_a_dry_plan_of_a_meta_folder_knows_the_size_to_the_byte(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", n_shards=2)
    plan = convert_plan(tmp_path / "a", tmp_path / "b", to="meta", n_shards=4, options=OPTIONS)
    result = run(plan, RunOptions(2))
    written = [path for path in result.files if path.name != "smelt.json"]
    assert sum(path.stat().st_size for path in written) == plan.nbytes
    assert sorted(result.files) == sorted((tmp_path / "b").iterdir())


@pytest.mark.parametrize("n_shards", [4, 8])
def test_shards_beyond_the_key_value_heads_repeat_them(tmp_path: Path, n_shards: int) -> None:
    source = write_meta(tmp_path / "a", n_heads=8, n_kv_heads=2)
    convert(tmp_path / "a", tmp_path / "b", to="meta", n_shards=n_shards, options=OPTIONS)
    assert json.loads((tmp_path / "b" / "params.json").read_text())["n_kv_heads"] == n_shards
    whole = source.state["layers.1.attention.wk.weight"].chunk(2)
    for rank in range(n_shards):
        found = load(tmp_path / "b" / f"consolidated.{rank:02d}.pth")["layers.1.attention.wk.weight"]
        assert same_bits(found, whole[rank * 2 // n_shards])
    state, params = read_meta(tmp_path / "b")  # each head repeated is grouped-query attention all the same
    wanted = meta_forward(source.state, source.params, TOKENS)
    assert (meta_forward(state, params, TOKENS) - wanted).abs().max() < 1e-9
    assert diff(tmp_path / "a", tmp_path / "b").equal
    convert(tmp_path / "b", tmp_path / "c", to="meta", n_shards=1)
    assert (tmp_path / "c" / "params.json").read_bytes() == (tmp_path / "a" / "params.json").read_bytes()


def test_an_embedding_that_came_by_rows_goes_by_rows(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", n_shards=2, embedding_dim=0)
    assert diff(tmp_path / "a", tmp_path / "a").equal
    convert(tmp_path / "a", tmp_path / "b.gguf", options=OPTIONS)
    convert(tmp_path / "b.gguf", tmp_path / "c", to="meta", n_shards=4)
    assert_shards(tmp_path / "c", source, 4, embedding_dim=0)


def test_a_tied_model_gets_its_head_again(tmp_path: Path) -> None:
    source = write_meta(tmp_path / "a", tied=True)
    convert(tmp_path / "a", tmp_path / "hf", options=OPTIONS)
    convert(tmp_path / "hf", tmp_path / "b", to="meta", n_shards=2)
    assert_shards(tmp_path / "b", source, 2)
    assert open_checkpoint(tmp_path / "b").config["tie_word_embeddings"] is True
    convert(tmp_path / "b", tmp_path / "hf2")
    assert (tmp_path / "hf2/model.safetensors").read_bytes() == (tmp_path / "hf/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("shape", "key", "value"),
    [
        ({}, "dim", 64),
        ({"n_kv_heads": 2}, "n_kv_heads", 2),
        ({"extra_params": {"rope_theta": 1e6}}, "rope_theta", 1e6),
        ({"extra_params": {"ffn_dim_multiplier": 1.3}}, "n_layers", 2),
    ],
)
def test_params_json_out_of_a_config_says_what_metas_own_said(
    tmp_path: Path, shape: dict[str, Any], key: str, value: object
) -> None:
    write_meta(tmp_path / "a", **shape)
    convert(tmp_path / "a", tmp_path / "hf", options=OPTIONS)
    forget_origin(tmp_path / "hf" / "model.safetensors")
    convert(tmp_path / "hf", tmp_path / "b", to="meta")
    assert json.loads((tmp_path / "b" / "params.json").read_text())[key] == value
    first, second = (open_checkpoint(tmp_path / name, OPTIONS) for name in "ab")
    assert first.config == second.config


def forget_origin(path: Path) -> None:
    """As a file that never was a Meta folder's."""
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "dim,width", [(4096, 11008), (4096, 14336), (8192, 28672), (64, 176), (64, 48), (128, 999), (2048, 5461)]
)
def test_every_width_has_a_rule_that_gives_it(dim: int, width: int) -> None:
    from meta_checkpoints import feed_forward_width
    from smelt.convert.meta_params import _width_rule

    multiple_of, multiplier = _width_rule(dim, width)
    assert feed_forward_width({"dim": dim, "multiple_of": multiple_of, "ffn_dim_multiplier": multiplier}) == width


@pytest.mark.parametrize(
    ("n_shards", "says"), [(3, "4 heads"), (8, "4 heads"), (0, "wanted 1 to 100"), (101, "wanted 1")]
)
def test_shards_that_cannot_be_are_refused(tmp_path: Path, n_shards: int, says: str) -> None:
    write_meta(tmp_path / "a")
    with pytest.raises(UsageError, match=f"--shards {n_shards}: .*{says}"):
        convert_plan(tmp_path / "a", tmp_path / "b", to="meta", n_shards=n_shards, options=OPTIONS)


def test_a_vocabulary_that_does_not_divide_is_refused_by_name(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", vocab=511)
    with pytest.raises(UsageError, match=r"--shards 2: 1 tensors do not divide.*output\.weight \[511, 64\]"):
        convert_plan(tmp_path / "a", tmp_path / "b", to="meta", n_shards=2, options=OPTIONS)


def test_shards_are_for_meta_folders_only(tmp_path: Path) -> None:
    write_meta(tmp_path / "a")
    with pytest.raises(UsageError, match=r"--shards divides Meta's folders"):
        convert_plan(tmp_path / "a", tmp_path / "b.gguf", n_shards=2, options=OPTIONS)


def test_a_head_size_that_params_json_cannot_say_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_meta(tmp_path / "a", n_layers=1)
    convert(tmp_path / "a", tmp_path / "hf", options=OPTIONS)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    prefix = "model.layers.0.self_attn"
    for name in ("q_proj", "k_proj", "v_proj"):  # 2 heads of 16
        state[f"{prefix}.{name}.weight"] = state[f"{prefix}.{name}.weight"][:32].clone()
    state[f"{prefix}.o_proj.weight"] = state[f"{prefix}.o_proj.weight"][:, :32].clone()
    save_file(state, tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="2 heads of 16 are not 64 wide"):
        convert_plan(tmp_path / "hf", tmp_path / "b", to="meta")


def test_a_repeated_head_that_differs_stops_the_run(tmp_path: Path) -> None:
    write_meta(tmp_path / "a", n_heads=8, n_kv_heads=2)
    convert(tmp_path / "a", tmp_path / "b", to="meta", n_shards=4, options=OPTIONS)
    path = tmp_path / "b" / "consolidated.01.pth"
    state = torch.load(path, weights_only=True)
    state["layers.1.attention.wv.weight"][0, 0] += 1
    torch.save(state, path)
    with pytest.raises(InputError, match=r"layers\.1\.attention\.wv\.weight: its 4 key-value heads .*--kv-heads 4"):
        convert(tmp_path / "b", tmp_path / "c.gguf")
    assert not (tmp_path / "c.gguf").exists()
    convert(tmp_path / "b", tmp_path / "c.gguf", options=OpenOptions(kv_heads=4))
    assert open_checkpoint(tmp_path / "c.gguf").config["num_key_value_heads"] == 4
