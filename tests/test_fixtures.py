"""The fixtures themselves: a wrong judge would pass wrong work."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import sentencepiece
import torch
from meta_checkpoints import (
    feed_forward_width,
    merge_meta,
    meta_forward,
    random_state,
    read_meta,
    shard_meta,
    share_storage,
    tokenizer_model,
    write_meta,
)

PARAMS = {"dim": 64, "multiple_of": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "norm_eps": 1e-5}


@pytest.mark.parametrize("shape", [{}, {"shared_storage": True}, {"zip_format": False}, {"rope_freqs": False}])
@pytest.mark.parametrize("n_shards", [1, 2])
def test_shards_merge_back_to_the_full_state(tmp_path: Path, n_shards: int, shape: dict[str, bool]) -> None:
    written = write_meta(tmp_path / "model", n_shards=n_shards, n_kv_heads=2, dtype=torch.bfloat16, **shape)
    assert len(list(written.folder.glob("*.pth"))) == n_shards
    merged, params = read_meta(written.folder)
    assert params == written.params
    assert (merged.pop("rope.freqs", None) is not None) == shape.get("rope_freqs", True)
    assert merged.keys() == written.state.keys()
    assert len(merged) == 9 * params["n_layers"] + 3
    for key, tensor in written.state.items():
        assert merged[key].dtype == torch.bfloat16
        assert torch.equal(merged[key], tensor), key


def test_shards_divide_as_metas_do() -> None:
    state = random_state(PARAMS, 512)
    second, ffn = shard_meta(state, 2)[1], feed_forward_width(PARAMS)
    assert second["tok_embeddings.weight"].shape == (512, 32)
    assert second["output.weight"].shape == (256, 64)
    assert second["layers.1.attention.wq.weight"].shape == (32, 64)
    assert second["layers.1.attention.wk.weight"].shape == (16, 64)
    assert second["layers.1.attention.wo.weight"].shape == (64, 32)
    assert second["layers.1.feed_forward.w1.weight"].shape == (ffn // 2, 64)
    assert second["layers.1.feed_forward.w2.weight"].shape == (64, ffn // 2)
    assert second["norm.weight"].shape == (64,)
    assert shard_meta(state, 2, embedding_dim=0)[1]["tok_embeddings.weight"].shape == (256, 64)
    assert torch.equal(second["layers.1.attention.wo.weight"], state["layers.1.attention.wo.weight"][:, 32:])


def test_shared_storage_puts_a_layer_into_one_storage_at_offsets() -> None:
    state = random_state(PARAMS, 512)
    shared = share_storage(state)
    storages = {tensor.untyped_storage().data_ptr() for tensor in shared.values()}
    assert len(storages) == PARAMS["n_layers"] + 1
    assert shared["layers.0.attention.wk.weight"].storage_offset() > 0
    assert merge_meta([shared]).keys() == state.keys()
    assert all(torch.equal(shared[key], state[key]) for key in state)


def test_a_tied_output_shares_the_embeddings_storage(tmp_path: Path) -> None:
    folder = write_meta(tmp_path, tied=True).folder
    stored = torch.load(folder / "consolidated.00.pth")
    assert stored["output.weight"].data_ptr() == stored["tok_embeddings.weight"].data_ptr()


def test_the_tokenizer_is_llamas_in_small(tmp_path: Path) -> None:
    written = write_meta(tmp_path / "7B", tokenizer="parent")
    assert written.tokenizer == tmp_path / "tokenizer.model"
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(written.tokenizer))
    assert encoder.vocab_size() == 512
    assert (encoder.unk_id(), encoder.bos_id(), encoder.eos_id(), encoder.pad_id()) == (0, 1, 2, -1)
    assert [encoder.id_to_piece(3 + byte) for byte in range(256)] == [f"<0x{byte:02X}>" for byte in range(256)]
    text = "    def f(x):\n\treturn 'é漢'\n"
    assert encoder.decode(encoder.encode(text)) == text
    assert tokenizer_model(512) == written.tokenizer.read_bytes()


def test_heads_cut_by_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole heads"):
        write_meta(tmp_path, n_shards=4, n_kv_heads=2)


def test_forward_is_causal_and_knows_positions() -> None:
    state = random_state(PARAMS, 512)
    tokens = torch.tensor([5, 9, 9, 7, 300, 2])
    logits = meta_forward(state, PARAMS, tokens)
    changed = meta_forward(state, PARAMS, torch.cat((tokens[:-1], torch.tensor([3]))))
    assert torch.allclose(logits[:-1], changed[:-1])
    assert not torch.allclose(logits[-1], changed[-1])
    swapped = meta_forward(state, PARAMS, tokens[[1, 0, 2, 3, 4, 5]])
    assert (logits[-1] - swapped[-1]).abs().max() > 0.01
    assert 1 < logits.std() < 10


def test_forward_takes_batches_and_both_precisions() -> None:
    state = random_state(PARAMS, 512)
    tokens = torch.randint(512, (2, 12), generator=torch.Generator().manual_seed(0))
    both = meta_forward(state, PARAMS, tokens)
    assert torch.allclose(both[1], meta_forward(state, PARAMS, tokens[1]))
    assert torch.allclose(both.float(), meta_forward(state, PARAMS, tokens, torch.float32), atol=1e-4)


def test_forward_agrees_with_transformers_on_rotated_rows(tiny_llama: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the second opinion on the forward pass")
    state, params = read_meta(tiny_llama)
    config = transformers.LlamaConfig(
        vocab_size=state["output.weight"].shape[0],
        hidden_size=params["dim"],
        intermediate_size=feed_forward_width(params),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=params["n_kv_heads"],
        rms_norm_eps=params["norm_eps"],
        attn_implementation="eager",
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(hugging_face_state(state, params["dim"] // params["n_heads"]))
    tokens = torch.arange(3, 203) * 5 % 1024
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    assert (meta_forward(state, params, tokens) - theirs).abs().max() < 1e-4


def hugging_face_state(state: dict[str, torch.Tensor], head_dim: int) -> dict[str, torch.Tensor]:
    """Hugging Face's names; rows of q and k go from adjacent pairs to halves."""
    names = {
        "tok_embeddings": "model.embed_tokens",
        "norm": "model.norm",
        "output": "lm_head",
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    theirs = {}
    for key, stored in state.items():
        if key == "rope.freqs":
            continue
        *layer, name = re.fullmatch(r"(?:(layers\.\d+)\.)?(.+)\.weight", key).groups()
        tensor = stored.float()
        if name in ("attention.wq", "attention.wk"):
            pairs = tensor.unflatten(0, (-1, head_dim // 2, 2))
            tensor = torch.cat((pairs[:, :, 0], pairs[:, :, 1]), dim=1).flatten(0, 1)
        theirs[".".join((["model", layer[0]] if layer[0] else []) + [names[name], "weight"])] = tensor
    return theirs


def test_the_bundled_model_has_the_perplexity_that_its_readme_states(tiny_llama: Path) -> None:
    stated = re.search(r"first (\d+) windows of (\d+) tokens\D+([\d.]+)", (tiny_llama / "README.md").read_text())
    n_windows, context, perplexity = int(stated[1]), int(stated[2]), float(stated[3])
    state, params = read_meta(tiny_llama)
    encoder = sentencepiece.SentencePieceProcessor(model_file=str(tiny_llama / "tokenizer.model"))
    text = (tiny_llama / "heldout.txt").read_text(encoding="utf-8")
    tokens = torch.tensor([encoder.bos_id(), *encoder.encode(text)])[: n_windows * context].view(n_windows, context)
    tokens[:, 0] = encoder.bos_id()
    logits = meta_forward(state, params, tokens, torch.float32)[:, context // 2 : -1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, context // 2 + 1 :].flatten())
    assert losses.exp().item() == pytest.approx(perplexity, abs=2e-3)
    assert perplexity < 40  # chance is 1024


def test_the_bundled_models_checklist_holds(tiny_llama: Path) -> None:
    lines = (tiny_llama / "checklist.chk").read_text().splitlines()
    assert len(lines) == 3
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.md5((tiny_llama / name).read_bytes()).hexdigest() == digest


def test_the_bundled_model_stays_small(tiny_llama: Path) -> None:
    assert sum(path.stat().st_size for path in tiny_llama.glob("*.pth")) <= 6_000_000
    assert sum(path.stat().st_size for path in tiny_llama.iterdir()) <= 6_300_000
