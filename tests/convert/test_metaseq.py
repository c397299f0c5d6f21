"""OPT as metaseq saves it: one part and many, flattened and not, give one model; what is damaged is refused in a line."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import json
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import convert, diff, open_checkpoint, verify
from smelt.convert.inspect import inspect
from smelt.convert.metaseq import SPECIAL
from smelt.convert.options import OpenOptions
from smelt.errors import FormatError, InputError, ModelError, UnsafePickleError, UsageError
from smelt.formats.gguf import open_gguf

from .byte_level import trained_json
from .small_models import payloads

transformers = pytest.importorskip("transformers", reason="it computes the logits")

HEADS, WIDTH, VOCAB = 8, 64, 512
TOKENS = torch.tensor([[2, *range(5, 60)]])
PARTS = "reshard-model_part-{}.pt"


def opt(**changes: Any) -> Any:
    """A small OPT of random fp16 weights."""
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "ffn_dim": 96,
        "num_attention_heads": HEADS,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**(settings | changes))).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape) * 0.1)
    return model.half()


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """metaseq's names, whole, q, k and v apart."""
    renamed = {"decoder.final_layer_norm": "decoder.layer_norm", "project_in": "project_in_dim"}
    renamed["project_out"] = "project_out_dim"
    state = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            own = name.removeprefix("model.")
            for theirs, ours in renamed.items():
                own = own.replace(theirs, ours)
            state[own] = tensor
    return state


def divided(state: dict[str, torch.Tensor], n_parts: int) -> list[dict[str, torch.Tensor]]:
    """Model-parallel parts, their projections fused in the order k, v, q."""
    parts: list[dict[str, torch.Tensor]] = [OrderedDict() for _ in range(n_parts)]
    for name, tensor in state.items():
        by_rows = any(key in name for key in ("embed_tokens", ".fc1.", "k_proj", "v_proj", "q_proj"))
        by_columns = name.endswith(("fc2.weight", "out_proj.weight"))
        axis = 0 if by_rows else 1 if by_columns else None
        pieces = [tensor] * n_parts if axis is None else torch.chunk(tensor, n_parts, axis)
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    for part in parts:
        for name in [name for name in part if ".k_proj." in name]:
            names = [name.replace("k_proj", f"{which}_proj") for which in "kvq"]
            part[name.replace("k_proj", "qkv_proj")] = torch.cat([part.pop(one) for one in names])
        part["decoder.version"] = torch.tensor([3.0])
        part["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    return parts


def flattened(part: dict[str, torch.Tensor], n_shards: int) -> list[dict[str, Any]]:
    """Shards of one part: each module's tensors one after another, cut into runs of one length with padding at the end."""
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in part.items():
        if name.endswith(("version", "_float_tensor")):
            continue
        pieces = name.split(".")
        path = ".".join(pieces[:3]) if pieces[1] == "layers" else "decoder"
        modules.setdefault(path, {})[name.removeprefix(f"{path}.")] = tensor
    shards = [{"model": OrderedDict(), "shard_metadata": {"param_metadata": []}} for _ in range(n_shards)]
    for path, tensors in modules.items():
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        length = -(-len(flat) // n_shards)
        for number, shard in enumerate(shards):
            run = flat[number * length : (number + 1) * length]
            padding = length - len(run)
            shard["model"][f"{path}.flat_param_0"] = torch.cat([run, torch.full((padding,), 7.0, dtype=run.dtype)])
            params = {
                "names": list(tensors),
                "shapes": [tensor.shape for tensor in tensors.values()],
                "padding": padding,
            }
            params["numels"] = [tensor.numel() for tensor in tensors.values()]
            shard["shard_metadata"]["param_metadata"].append({"fsdp_path": path, "params": {"flat_param_0": params}})
    return shards


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **(
            {"decoder_attention_heads": HEADS, "activation_fn": "relu", "lr": [6e-4], "arch": "transformer_lm_megatron"}
            | changes
        )
    )


def save(folder: Path, model: Any, n_parts: int, n_shards: int = 0, **top: Any) -> Path:
    """A folder as metaseq leaves it; `n_shards` 0: not flattened."""
    folder.mkdir()
    for number, part in enumerate(divided(state_of(model), n_parts)):
        beside = {
            "args": arguments(),
            "cfg": None,
            "extra_state": {"epoch": 1},
            "last_optimizer_state": {"m": part},
            **top,
        }
        if not n_shards:
            torch.save({"model": part, **beside}, folder / PARTS.format(number))
        else:
            for shard, content in enumerate(flattened(part, n_shards)):
                name = f"checkpoint_last-model_part-{number}-shard{shard}.pt"
                torch.save({**content, **beside}, folder / name)
    return folder


@pytest.mark.parametrize("kind", [{}, {"do_layer_norm_before": False, "word_embed_proj_dim": 32}])
def test_every_division_gives_one_model_and_its_logits(tmp_path: Path, kind: dict[str, Any]) -> None:
    model = opt(**kind)
    found = []
    for n_parts, n_shards in ((1, 0), (2, 0), (8, 0), (1, 1), (2, 1), (2, 3), (1, 8)):
        source = save(tmp_path / f"{n_parts}-{n_shards}", model, n_parts, n_shards)
        convert(source, tmp_path / f"hf-{n_parts}-{n_shards}")
        found.append(payloads(tmp_path / f"hf-{n_parts}-{n_shards}"))
    assert all(one == found[0] for one in found)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf-8-0", dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS).logits, model.float()(TOKENS).logits)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_a_single_file_opens_by_its_name_and_becomes_a_gguf(tmp_path: Path) -> None:
    source = save(tmp_path / "opt", opt(), 1)
    (source / PARTS.format(0)).rename(source / "reshard.pt")
    convert(source / "reshard.pt", tmp_path / "m.gguf", options=OpenOptions(skip_tokenizer=True))
    assert open_gguf(tmp_path / "m.gguf").metadata["general.architecture"] == "opt"
    assert diff(source, tmp_path / "m.gguf").equal
    model = open_checkpoint(source)
    assert model.source == "metaseq" and model.config["num_attention_heads"] == HEADS
    assert model.stored_names["model.decoder.final_layer_norm.weight"] == "decoder.layer_norm.weight"


@pytest.fixture
def omegaconf() -> Iterator[Any]:
    """Classes that pickle as omegaconf's do: nodes that name their parents."""
    module = types.ModuleType("omegaconf")

    class Node:
        def __init__(self, content: Any, parent: Any = None) -> None:
            self.__dict__["_parent"] = parent
            if isinstance(content, dict):
                self.__dict__["_content"] = {key: Node(value, self) for key, value in content.items()}
            else:
                self.__dict__["_val"] = content

    Node.__module__, Node.__qualname__ = "omegaconf", "DictConfig"
    module.DictConfig = Node  # type: ignore[attr-defined]
    sys.modules["omegaconf"] = module
    yield Node
    del sys.modules["omegaconf"]


def test_settings_may_be_an_omegaconf(tmp_path: Path, omegaconf: Any) -> None:
    cfg = omegaconf({"model": {"decoder_attention_heads": 4, "activation_fn": "gelu"}, "task": {"data": None}})
    source = save(tmp_path / "opt", opt(), 1, args=None, cfg=cfg)
    config = open_checkpoint(source).config
    assert (config["num_attention_heads"], config["activation_function"]) == (4, "gelu")


def test_a_config_beside_the_files_tells_what_they_do_not(tmp_path: Path) -> None:
    source = save(tmp_path / "opt", opt(), 2, args=None)
    with pytest.raises(ModelError, match=r"number of heads: put the model's config\.json"):
        open_checkpoint(source)
    (source / "config.json").write_text(
        json.dumps({"model_type": "opt", "num_attention_heads": 16, "hidden_size": WIDTH})
    )
    assert open_checkpoint(source).config["num_attention_heads"] == 16


def test_a_published_shape_tells_its_heads(tmp_path: Path) -> None:
    model = opt(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, vocab_size=64, ffn_dim=16)
    assert open_checkpoint(save(tmp_path / "opt", model, 1, args=None)).config["num_attention_heads"] == 12


def test_an_output_projection_has_to_be_the_embedding(tmp_path: Path) -> None:
    model = opt()
    state = divided(state_of(model), 1)[0]
    for name, scale in (("same", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        head = state["decoder.embed_tokens.weight"] * scale
        torch.save(
            {"model": {**state, "decoder.output_projection.weight": head}, "args": arguments()},
            tmp_path / name / "restored.pt",
        )
    convert(tmp_path / "same", tmp_path / "hf")
    with pytest.raises(InputError, match="differs from the embedding"):
        convert(tmp_path / "other", tmp_path / "not")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    source = save(tmp_path / "parts", opt(), 4)
    (source / PARTS.format(3)).unlink()
    with pytest.raises(ModelError, match="there are 4 parts, and 3 here"):
        open_checkpoint(source)
    (source / PARTS.format(1)).unlink()
    with pytest.raises(InputError, match="first part 1, shard 0"):
        open_checkpoint(source)
    shards = save(tmp_path / "shards", opt(), 1, 3)
    (shards / "checkpoint_last-model_part-0-shard2.pt").unlink()
    with pytest.raises(FormatError, match="elements, shard_metadata says"):
        open_checkpoint(shards)


def test_flat_weights_without_metadata_are_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "opt", opt(), 1, 1, shard_metadata=None)
    with pytest.raises(FormatError, match="convert_to_singleton"):
        open_checkpoint(source)


def test_two_models_in_a_folder_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "opt", opt(), 2)
    torch.save({"model": divided(state_of(opt()), 1)[0], "args": arguments()}, source / "restored.pt")
    with pytest.raises(InputError, match="one model, got"):
        open_checkpoint(source)
    assert len(open_checkpoint(source / "restored.pt").files) == 1
    assert len(open_checkpoint(source / PARTS.format(1)).files) == 2


def test_a_pickle_that_asks_for_more_than_stubs_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("run",)

    source = save(tmp_path / "opt", opt(), 1, extra=Evil())
    with pytest.raises(UnsafePickleError, match="print"):
        open_checkpoint(source)


def test_a_file_without_a_model_is_shown_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    torch.save({"optimizer": {"a": torch.zeros(2)}}, tmp_path / "x" / "state.pt")
    with pytest.raises(FormatError, match="no dict under 'model'"):
        inspect(tmp_path / "x")


@pytest.mark.parametrize("with_dictionary", [True, False])
def test_the_vocabulary_is_in_the_order_of_the_rows(tmp_path: Path, with_dictionary: bool) -> None:
    source = save(tmp_path / "opt", opt(vocab_size=1024), 2)
    trained = json.loads(trained_json("gpt-2"))["model"]
    texts = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    merges = "#version: 0.2\n" + "".join(
        f"{merge if isinstance(merge, str) else ' '.join(merge)}\n" for merge in trained["merges"]
    )
    order = list(reversed(range(len(texts)))) if with_dictionary else list(range(len(texts)))
    if with_dictionary:
        ids = {text: id_ for id_, text in enumerate(texts)}
        (source / "dict.txt").write_text("".join(f"{id_} 1\n" for id_ in order) + "madeupword0000 0\n")
    else:
        ids = {text: id_ for id_, text in enumerate(("<s>", "<pad>", "</s>", "<unk>", *texts))}
    (source / "gpt2-vocab.json").write_text(json.dumps(ids))
    (source / "gpt2-merges.txt").write_text(merges)
    convert(source, tmp_path / "hf")
    vocab = json.loads((tmp_path / "hf" / "vocab.json").read_text())
    assert [vocab[text] for text in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert all(vocab[texts[id_]] == row + 4 for row, id_ in enumerate(order))
    tokenizer = transformers.GPT2Tokenizer.from_pretrained(tmp_path / "hf")
    ids_of = tokenizer("def main(self):\n    return 1", add_special_tokens=False).input_ids
    assert ids_of == open_checkpoint(source).tokenizer.encode("def main(self):\n    return 1")  # type: ignore[union-attr]
    assert np.max(ids_of) < len(vocab)


def hugging_face(folder: Path, model: Any) -> Path:
    """A folder as transformers saves it, with GPT-2's kind of vocabulary and the files that no other format has a place for."""
    model.save_pretrained(folder)
    trained = json.loads(trained_json("gpt-2"))["model"]
    texts = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    ids = {text: id_ for id_, text in enumerate((*SPECIAL, *texts))}
    (folder / "vocab.json").write_text(json.dumps(ids, indent=1))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in trained["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "<pad>", "add_bos_token": True}))
    (folder / "generation_config.json").write_text('{"do_sample":\ttrue}')
    return folder


KINDS: list[dict[str, Any]] = [
    {},
    {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    {"_remove_final_layer_norm": True},
    {"dropout": 0.25, "init_std": 0.5, "num_attention_heads": 4},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: ",".join(kind) or "plain")
def test_a_folder_comes_back_from_metaseq_byte_for_byte(tmp_path: Path, kind: dict[str, Any]) -> None:
    source = hugging_face(tmp_path / "source", opt(vocab_size=1024, **kind))
    convert(source, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "metaseq", to="metaseq")
    convert(tmp_path / "metaseq", tmp_path / "back")
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir() if path.name != "smelt.json"}
    found = {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir() if path.name != "smelt.json"}
    assert found == wanted
    assert diff(source, tmp_path / "metaseq").equal
    assert payloads(tmp_path / "back") == payloads(source)


@pytest.mark.parametrize("kind", KINDS[:2], ids=["pre-norm", "350M"])
def test_torch_opens_what_metaseq_would_have_written(tmp_path: Path, kind: dict[str, Any]) -> None:
    model = opt(**kind)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").unlink()
    convert(tmp_path / "hf", tmp_path / "metaseq", to="metaseq", options=OpenOptions(skip_tokenizer=True))
    assert sorted(path.name for path in (tmp_path / "metaseq").iterdir()) == [
        *("reshard.pt", "smelt.config.json", "smelt.json")
    ]
    found = torch.load(tmp_path / "metaseq" / "reshard.pt", weights_only=True)
    (wanted,) = divided(state_of(model), 1)
    del wanted["decoder.embed_positions._float_tensor"]  # of positions that are not learned
    assert found["model"].keys() == wanted.keys()
    assert all(torch.equal(found["model"][name], tensor) for name, tensor in wanted.items())
    query = model.state_dict()["model.decoder.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(found["model"]["decoder.layers.1.self_attn.qkv_proj.weight"][2 * WIDTH :], query)
    cfg = found["cfg"]["model"]
    assert type(cfg) is dict and (cfg["decoder_attention_heads"], cfg["decoder_layers"]) == (HEADS, 2)
    assert cfg["decoder_normalize_before"] is model.config.do_layer_norm_before
    with zipfile.ZipFile(tmp_path / "metaseq" / "reshard.pt") as archive:
        assert archive.testzip() is None
    assert verify(tmp_path / "metaseq").verdict == "ok"


def test_a_head_of_its_own_goes_to_metaseq_and_comes_back(tmp_path: Path) -> None:
    model = opt(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "hf")
    options = OpenOptions(skip_tokenizer=True)
    convert(tmp_path / "hf", tmp_path / "metaseq", to="metaseq", options=options)
    state = torch.load(tmp_path / "metaseq" / "reshard.pt", weights_only=True)["model"]
    assert torch.equal(state["decoder.output_projection.weight"], model.lm_head.weight)
    convert(tmp_path / "metaseq", tmp_path / "back", options=options)
    assert payloads(tmp_path / "back") == payloads(tmp_path / "hf")


def test_a_vocabulary_in_other_order_comes_back_with_its_dictionary(tmp_path: Path) -> None:
    source = save(tmp_path / "opt", opt(vocab_size=1024), 1)
    trained = json.loads(trained_json("gpt-2"))["model"]
    texts = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    (source / "gpt2-vocab.json").write_text(json.dumps({text: id_ for id_, text in enumerate(texts)}, indent=2))
    (source / "gpt2-merges.txt").write_text("#version: 0.2\n")
    (source / "dict.txt").write_text("".join(f"{id_} 1\n" for id_ in reversed(range(len(texts)))))
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in trained["merges"])
    (source / "gpt2-merges.txt").write_text("#version: 0.2\n" + "".join(f"{merge}\n" for merge in merges))
    for step, (start, to) in enumerate(
        (("opt", "safetensors"), ("0", "gguf"), ("1.gguf", "metaseq"), ("2", "metaseq"))
    ):
        convert(tmp_path / start, tmp_path / (f"{step}.gguf" if to == "gguf" else f"{step}"), to=to)
    for name in ("gpt2-vocab.json", "gpt2-merges.txt", "dict.txt"):
        assert (
            (tmp_path / "2" / name).read_bytes() == (tmp_path / "3" / name).read_bytes() == (source / name).read_bytes()
        )
    one, other = open_checkpoint(source).tokenizer, open_checkpoint(tmp_path / "3").tokenizer
    assert one is not None and other is not None and one.pieces == other.pieces


def test_a_tokenizer_json_alone_becomes_metaseqs_two_files(tmp_path: Path) -> None:
    model = opt(vocab_size=1024)
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_bytes(trained_json("gpt-2"))
    convert(tmp_path / "hf", tmp_path / "metaseq", to="metaseq")
    vocab = json.loads((tmp_path / "metaseq" / "gpt2-vocab.json").read_text())
    assert vocab == json.loads(trained_json("gpt-2"))["model"]["vocab"] | vocab
    convert(tmp_path / "metaseq", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == trained_json("gpt-2")
    assert not (tmp_path / "back" / "vocab.json").exists()


def test_metaseq_holds_opt_alone_and_in_one_part(tmp_path: Path) -> None:
    write_meta(tmp_path / "llama")
    with pytest.raises(ModelError, match="metaseq's files hold OPT, not llama"):
        convert(tmp_path / "llama", tmp_path / "out", to="metaseq", options=OpenOptions(context_length=64))
    opt().save_pretrained(tmp_path / "hf")
    options = OpenOptions(skip_tokenizer=True)
    with pytest.raises(UsageError, match="--shards divides Meta's folders, the target is metaseq"):
        convert(tmp_path / "hf", tmp_path / "out", to="metaseq", n_shards=2, options=options)
    with pytest.raises(UsageError, match="--max-shard-size divides safetensors and GGUF"):
        convert(tmp_path / "hf", tmp_path / "out", to="metaseq", max_shard_nbytes=1000, options=options)
    with pytest.raises(UsageError, match="name one without a suffix"):
        convert(tmp_path / "hf", tmp_path / "reshard.pt", to="metaseq", options=options)


@pytest.mark.parametrize("form", ["safetensors", "gguf", "metaseq"])
def test_a_context_that_the_table_of_positions_has_not_is_a_usage_error(tmp_path: Path, form: str) -> None:
    opt().save_pretrained(tmp_path / "hf")
    source = tmp_path / ("m.gguf" if form == "gguf" else form)
    convert(tmp_path / "hf", source, to=form, options=OpenOptions(skip_tokenizer=True))
    with pytest.raises(UsageError, match=r"--context-length 4096: the model has a table of positions, which holds 64"):
        open_checkpoint(source, OpenOptions(context_length=4096, skip_tokenizer=True))
    assert open_checkpoint(source, OpenOptions(context_length=64, skip_tokenizer=True)).config["hidden_size"] == WIDTH
    with pytest.raises(UsageError, match="--rope-theta: opt has no rotary angles"):
        open_checkpoint(source, OpenOptions(rope_theta=1e4, skip_tokenizer=True))


def test_settings_pickled_by_the_real_omegaconf_stay_inert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    omegaconf = pytest.importorskip("omegaconf", reason="metaseq's own configs are of omegaconf; it is not installed")
    kinds: Any = types.ModuleType("metaseq.kinds")
    kinds.Activation = enum.Enum("Activation", {"relu": "relu", "gelu": "gelu"}, module=kinds.__name__)
    names = dataclasses.field(default_factory=lambda: ["a"])
    fields = [("fp16", bool, True), ("seed", int, 1), ("lr", float, 1e-4), ("names", list[str], names)]
    kinds.Common = dataclasses.make_dataclass("Common", fields)
    kinds.Common.__module__ = kinds.__name__
    settings = {
        "model": {
            "_name": "transformer_lm_megatron",
            "decoder_attention_heads": 4,
            "activation_fn": kinds.Activation.gelu,
            "max_target_positions": "${task.tokens_per_sample}",
            "layers": [1, 2, {"a": None}],
            "missing": "???",
        },
        "task": {"tokens_per_sample": 64, "data": None},
        "common": omegaconf.OmegaConf.structured(kinds.Common()),
    }
    with monkeypatch.context() as inside:  # pickling wants to find the classes; reading must not
        inside.setitem(sys.modules, "metaseq", types.ModuleType("metaseq"))
        inside.setitem(sys.modules, kinds.__name__, kinds)
        cfg = omegaconf.OmegaConf.create(settings)
        omegaconf.OmegaConf.set_struct(cfg, True)
        source = save(tmp_path / "opt", opt(), 2, args=None, cfg=cfg)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(source / PARTS.format(0), weights_only=True)
    config = open_checkpoint(source).config
    assert (config["num_attention_heads"], config["activation_function"]) == (4, "gelu")
    assert "metaseq" not in sys.modules
