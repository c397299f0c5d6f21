"""What Meta published for LLaMA, made small: FP8, embeddings by rows, repeated and aliased heads; and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from meta_checkpoints import shard_meta, write_meta
from smelt.api import convert, convert_plan, diff, open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.errors import InputError, ModelError, UnsafePickleError

OPTIONS = OpenOptions(context_length=128)


def rewrite(path: Path, **changes: torch.Tensor | None) -> None:
    """The shard with tensors replaced (dots as double underscores) or, where None, left out."""
    state = torch.load(path, weights_only=True)
    state |= {key.replace("__", "."): tensor for key, tensor in changes.items()}
    torch.save({key: tensor for key, tensor in state.items() if tensor is not None}, path)


# --- embeddings and heads


@pytest.mark.parametrize("embedding_dim", [0, 1])
@pytest.mark.parametrize("n_shards", [2, 4])
def test_the_shapes_tell_which_way_the_embedding_is_divided(tmp_path: Path, n_shards: int, embedding_dim: int) -> None:
    write_meta(tmp_path / "whole")
    write_meta(tmp_path / "shards", n_shards=n_shards, embedding_dim=embedding_dim)
    assert diff(tmp_path / "whole", tmp_path / "shards").equal


def test_an_embedding_of_neither_width_is_refused(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", n_shards=2)
    for rank in (0, 1):
        rewrite(tmp_path / "m" / f"consolidated.{rank:02d}.pth", tok_embeddings__weight=torch.zeros(512, 48).half())
    with pytest.raises(ModelError, match=r"48 columns in each of 2 shards, params\.json says dim 64"):
        open_checkpoint(tmp_path / "m")


def test_shards_without_a_head_are_tied_and_say_so(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", n_shards=2, tied=True, embedding_dim=0)
    write_meta(tmp_path / "whole", tied=True)
    for rank in (0, 1):
        rewrite(tmp_path / "m" / f"consolidated.{rank:02d}.pth", output__weight=None)
    model = open_checkpoint(tmp_path / "m")
    assert model.config["tie_word_embeddings"] is True
    assert any("the head is the embedding" in note for note in model.notes)
    assert diff(tmp_path / "m", tmp_path / "whole").equal


def test_a_head_that_is_another_name_of_the_embedding_is_tied(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", tied=True, n_shards=2, embedding_dim=0)
    model = open_checkpoint(tmp_path / "m")
    assert model.config["tie_word_embeddings"] is True and "lm_head.weight" not in model.tensors


def test_one_shard_by_its_short_name_opens(tmp_path: Path) -> None:
    write_meta(tmp_path / "m")
    write_meta(tmp_path / "same")
    (tmp_path / "m" / "consolidated.00.pth").rename(tmp_path / "m" / "consolidated.pth")
    assert diff(tmp_path / "m", tmp_path / "same").equal


@pytest.mark.parametrize("vocab", [512, 528])  # Code Llama: 16 rows more than LLaMA, params.json may not say how many
def test_the_vocabulary_is_the_embeddings_where_params_json_leaves_it_out(tmp_path: Path, vocab: int) -> None:
    write_meta(tmp_path / "m", vocab=vocab, n_shards=2, extra_params={"rope_theta": 1e6})
    params = json.loads((tmp_path / "m" / "params.json").read_text())
    del params["vocab_size"]
    (tmp_path / "m" / "params.json").write_text(json.dumps(params))
    model = open_checkpoint(tmp_path / "m")
    assert (model.config["vocab_size"], model.config["rope_theta"]) == (vocab, 1e6)


def test_views_that_are_transposed_or_cut_from_columns_read_as_what_they_show(tmp_path: Path) -> None:
    written = write_meta(tmp_path / "m")
    write_meta(tmp_path / "same")
    changes = {}
    for key, tensor in written.state.items():
        name = key.replace(".", "__")
        if key.endswith(("wq.weight", "w2.weight")):
            changes[name] = tensor.T.contiguous().T
        elif key.endswith("w1.weight"):
            changes[name] = torch.cat([tensor, torch.ones_like(tensor)], 1)[:, : tensor.shape[1]]
    rewrite(tmp_path / "m" / "consolidated.00.pth", **changes)
    saved = torch.load(tmp_path / "m" / "consolidated.00.pth", weights_only=True)
    assert not saved["layers.0.attention.wq.weight"].is_contiguous()
    assert diff(tmp_path / "m", tmp_path / "same").equal


# --- missing shards


@pytest.mark.parametrize("lost", [1, 3])
def test_a_missing_last_shard_is_named(tmp_path: Path, lost: int) -> None:
    write_meta(tmp_path / "m", n_shards=4)
    for rank in range(4 - lost, 4):
        (tmp_path / "m" / f"consolidated.{rank:02d}.pth").unlink()
    with pytest.raises(
        InputError, match=rf"there are 4 shards, and {4 - lost} here: .*consolidated\.03\.pth is missing"
    ):
        open_checkpoint(tmp_path / "m")


def test_shards_of_two_releases_are_refused(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", n_shards=2)
    rewrite(tmp_path / "m" / "consolidated.01.pth", layers__0__attention__wo__weight=torch.zeros(64, 16).half())
    with pytest.raises(ModelError, match=r"layers\.0\.attention\.wo\.weight"):
        open_checkpoint(tmp_path / "m")


# --- key-value heads that shards repeat


@pytest.fixture
def repeated(tmp_path: Path) -> Path:
    """A model of 2 key-value heads as 4 shards hold it, by Meta's repeat-then-chunk, with nothing of smelt beside it."""
    written = write_meta(tmp_path / "whole", n_heads=8, n_kv_heads=2)
    state = dict(written.state)
    for key, tensor in state.items():
        if key.endswith(("wk.weight", "wv.weight")):
            state[key] = tensor.unflatten(0, (2, -1)).repeat_interleave(2, 0).flatten(0, 1)
    folder = tmp_path / "repeated"
    folder.mkdir()
    for rank, shard in enumerate(shard_meta(state, 4, embedding_dim=0)):
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**written.params, "n_kv_heads": 4}))
    return folder


def test_repeated_heads_are_dropped_once_they_are_known(repeated: Path, tmp_path: Path) -> None:
    options = OpenOptions(context_length=128, kv_heads=2, skip_tokenizer=True)
    convert(repeated, tmp_path / "a.gguf", options=options)
    assert open_checkpoint(tmp_path / "a.gguf", options).config["num_key_value_heads"] == 2
    convert(tmp_path / "whole", tmp_path / "b.gguf", options=OPTIONS)
    assert diff(tmp_path / "a.gguf", tmp_path / "b.gguf").equal


def test_heads_are_taken_for_the_models_own_where_nothing_says_otherwise(repeated: Path) -> None:
    assert open_checkpoint(repeated).config["num_key_value_heads"] == 4


def test_heads_that_do_not_differ_as_said_stop_the_run(tmp_path: Path) -> None:
    write_meta(tmp_path / "m", n_heads=8, n_kv_heads=4)
    with pytest.raises(InputError, match=r"wk\.weight: its 4 key-value heads are not 2 heads repeated"):
        convert(tmp_path / "m", tmp_path / "x.gguf", options=OpenOptions(128, kv_heads=2))


@pytest.mark.parametrize("said", [3, 8])
def test_head_counts_that_cannot_be_are_refused(repeated: Path, said: int) -> None:
    with pytest.raises(ModelError, match=f"4 key-value heads in the files are not {said} heads repeated"):
        open_checkpoint(repeated, OpenOptions(kv_heads=said))


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_plan", Path(__file__).parents[2] / "benchmarks" / "plan.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.long
@pytest.mark.parametrize("to", ["safetensors", "gguf", "meta"])
@pytest.mark.parametrize("number", [0, 1])
def test_the_largest_checkpoints_are_planned_from_sparse_files(tmp_path: Path, number: int, to: str) -> None:
    plan = benchmark()
    plan.write_sparse(tmp_path / "source", plan.MODELS[number])
    options = OpenOptions(skip_tokenizer=True)
    model = open_checkpoint(tmp_path / "source", options)
    assert model.config["num_key_value_heads"] == (64, 8)[number]
    found = convert_plan(tmp_path / "source", tmp_path / "out", to=to, options=options)
    headers = sum(len(piece) for layout in found.files.values() for _, piece in layout.pieces)
    beyond = found.nbytes - plan.tensor_nbytes(plan.MODELS[number], to)
    assert headers <= beyond < headers + 5_000_000


# --- FP8


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """-> (a folder of 2 shards whose inner layers are FP8 with row scales per shard, what the weights are)."""
    written = write_meta(tmp_path / "fp8", n_layers=4, n_shards=2, dtype=torch.bfloat16, embedding_dim=0)
    parts: dict[str, list[torch.Tensor]] = {}
    for rank in (0, 1):
        path = tmp_path / "fp8" / f"consolidated.{rank:02d}.pth"
        state, scales = torch.load(path, weights_only=True), {}
        for layer in (1, 2):
            for name in ("w1", "w2", "w3"):
                key = f"layers.{layer}.feed_forward.{name}.weight"
                scale = state[key].float().abs().amax(1) / 448
                state[key] = (state[key].float() / scale[:, None]).to(torch.float8_e4m3fn)
                scales[f"{layer}_feed_forward.{name}_{rank}"] = scale
                parts.setdefault(key, []).append((state[key].float() * scale[:, None]).bfloat16())
        torch.save(state, path)
        torch.save(scales, tmp_path / "fp8" / f"fp8_scales_{rank}.pt")
    wanted = {key: torch.cat(shards, 1 if "w2" in key else 0) for key, shards in parts.items()}
    return tmp_path / "fp8", {**written.state, **wanted}


def test_fp8_weights_are_multiplied_by_their_scales_shard_by_shard(
    fp8: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    folder, wanted = fp8
    result = convert(folder, tmp_path / "out", to="meta", n_shards=1, options=OPTIONS)
    found = torch.load(tmp_path / "out" / "consolidated.00.pth", weights_only=True)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key].view(torch.uint8), wanted[key].view(torch.uint8)) for key in wanted)
    assert any("FP8" in note for note in result.notes)


def test_fp8_weights_without_scales_are_refused(fp8: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, _ = fp8
    (folder / "fp8_scales_1.pt").unlink()
    with pytest.raises(InputError, match=r"fp8_scales_1\.pt is missing"):
        open_checkpoint(folder)
    (folder / "fp8_scales_0.pt").unlink()
    with pytest.raises(ModelError, match=r"6 tensors are FP8.*fp8_scales_0\.pt"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "scale", "says"),
    [
        ("1_feed_forward.w1_0", None, r"FP8 weights have no scales.*layers\.1\.feed_forward\.w1\.weight"),
        ("3_feed_forward.w4_0", torch.ones(4), "names no scales of shard 0"),
        ("1_feed_forward.w1_1", torch.ones(4), "names no scales of shard 0"),
        ("9_feed_forward.w1_0", torch.ones(4), r"scales for layers\.9\.feed_forward\.w1\.weight"),
        ("1_feed_forward.w1_0", torch.ones(4), r"layers\.1\.feed_forward\.w1\.weight has \d+ rows, its scales \[4\]"),
        ("1_feed_forward.w1_0", torch.ones(96).half(), "is F16, wanted F32"),
    ],
)
def test_scales_that_fit_no_weights_are_refused(
    fp8: tuple[Path, dict[str, torch.Tensor]], key: str, scale: torch.Tensor | None, says: str
) -> None:
    path = fp8[0] / "fp8_scales_0.pt"
    scales = {**torch.load(path, weights_only=True), key: scale}
    torch.save({key: value for key, value in scales.items() if value is not None}, path)
    with pytest.raises(ModelError, match=says):
        open_checkpoint(fp8[0])


def test_every_fp8_code_means_what_torch_says() -> None:
    from smelt.dtypes import DTYPES
    from smelt.kernels.scheme import decode

    codes = np.arange(256, dtype=np.uint8)
    wanted = torch.from_numpy(codes.copy()).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(decode(DTYPES["F8_E4M3"], codes[None])[0], wanted, equal_nan=True)


# --- what smelt puts beside params.json


def test_params_json_has_the_last_word_over_the_config_beside_it(tmp_path: Path) -> None:
    write_meta(tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="meta", options=OPTIONS)
    params = json.loads((tmp_path / "b" / "params.json").read_text())
    (tmp_path / "b" / "params.json").write_text(json.dumps({**params, "norm_eps": 0.5, "rope_theta": 7.0}))
    config = open_checkpoint(tmp_path / "b").config
    assert (config["rms_norm_eps"], config["rope_theta"], config["max_position_embeddings"]) == (0.5, 7.0, 128)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"config": 1}', '{"config": {}, "side_files": "x", "kept": {}}', "[" * 100_000]
)
def test_a_damaged_config_beside_params_json_is_refused(tmp_path: Path, content: str) -> None:
    write_meta(tmp_path / "a")
    (tmp_path / "a" / "smelt.config.json").write_text(content)
    with pytest.raises(InputError, match=r"smelt\.config\.json"):
        open_checkpoint(tmp_path / "a", OPTIONS)


@pytest.mark.parametrize("heads", ["4", [4], 0, -4, 3, 1.5, True, {"a": 1}])
def test_head_counts_beside_params_json_are_believed_only_where_they_can_be(tmp_path: Path, heads: object) -> None:
    write_meta(tmp_path / "a")
    document = {"config": {"num_key_value_heads": heads}, "kept": {}, "side_files": []}
    (tmp_path / "a" / "smelt.config.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match="key-value heads"):
        open_checkpoint(tmp_path / "a", OPTIONS)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads", "n_kv_heads"])
@pytest.mark.parametrize("value", ["64", [64], -1, 0, True, 1e3])
def test_params_that_are_no_counts_are_refused(tmp_path: Path, key: str, value: object) -> None:
    write_meta(tmp_path / "a", n_shards=2, tokenizer=None)
    params = json.loads((tmp_path / "a" / "params.json").read_text())
    (tmp_path / "a" / "params.json").write_text(json.dumps({**params, key: value}))
    with pytest.raises(ModelError):
        open_checkpoint(tmp_path / "a", OPTIONS)


def test_the_config_beside_params_json_names_no_files_elsewhere(tmp_path: Path) -> None:
    write_meta(tmp_path / "a")
    (tmp_path / "secret").write_text("secret")
    document = {"config": {}, "kept": {}, "side_files": ["../secret", "/etc/passwd", "tokenizer_config.json"]}
    (tmp_path / "a" / "smelt.config.json").write_text(json.dumps(document))
    assert open_checkpoint(tmp_path / "a", OPTIONS).side_files == {}


def test_scales_that_would_run_code_are_refused(fp8: tuple[Path, dict[str, torch.Tensor]]) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            import os

            return os.system, ("touch /tmp/pwned",)

    torch.save({"1_feed_forward.w1_0": Evil()}, fp8[0] / "fp8_scales_0.pt")
    with pytest.raises(UnsafePickleError, match="system"):
        open_checkpoint(fp8[0])
