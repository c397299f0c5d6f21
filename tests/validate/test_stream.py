from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from smelt.errors import ModelError
from smelt.validate.replay import Replay
from smelt.validate.stream import Stream, Tokens, run_layers, stored_weights


class WatchedSource:
    """A source that knows which of the layers it gave out are still in memory."""

    def __init__(self, model: Any) -> None:
        self.inner = stored_weights(model)
        self.living: list[tuple[str, weakref.ref[Any]]] = []
        self.log: list[tuple[str, str, int]] = []

    def alive(self) -> set[str]:
        return {layer for layer, array in self.living if array() is not None}

    def __call__(self, names: Sequence[str]) -> Callable[[], dict[str, torch.Tensor]]:
        layer = names[0].split(".")[2] if names[0].startswith("model.layers") else "outer"
        decode = self.inner(names)

        def decoded() -> dict[str, torch.Tensor]:
            self.log.append(("decode", layer, len(self.alive() - {"outer"})))
            arrays = {name: tensor.numpy().copy() for name, tensor in decode().items()}
            self.living += [(layer, weakref.ref(array)) for array in arrays.values()]
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

        return decoded


def run(streams: list[Stream]) -> None:
    run_layers(streams, lambda index, layer, bad: bad is None)


@pytest.fixture
def tokens() -> list[Tokens]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 300, 48) for _ in range(3)]


def test_only_one_layer_is_in_memory_at_a_time(tiny: Any, tokens: list[Tokens]) -> None:
    source = WatchedSource(tiny.model())
    stream = Stream("m", tiny.model(), tokens, source)
    run([stream])
    assert source.log == [("decode", layer, 0) for layer in ("outer", "0", "1", "2")]
    assert source.alive() == {"outer"}


def test_no_parameter_of_a_layer_outlives_its_turn(tiny: Any, tokens: list[Tokens]) -> None:
    stream = Stream("m", tiny.model(), tokens)
    real: list[set[int]] = []

    def observe(index: int, layer: int, bad: int | None) -> bool:
        named = stream.replay.network.named_parameters()
        real.append(
            {layer for layer in range(3) for n, p in named if f"layers.{layer}." in n and p.device.type != "meta"}
        )
        return True

    run_layers([stream], observe)
    assert real == [set(), set(), set()]


def test_at_most_the_next_layer_is_read_ahead(tiny: Any, tokens: list[Tokens]) -> None:
    stream = Stream("m", tiny.model(), tokens)
    ahead: list[int] = []

    def observe(index: int, layer: int, bad: int | None) -> bool:
        read = {int(name.split(".")[2]) for name, _, _ in tiny.reads if name.startswith("model.layers")}
        ahead.append(max(read) - layer)
        return True

    run_layers([stream], observe)
    assert max(ahead) <= 1
    counted = [name for name, _, _ in tiny.reads if name.startswith("model.layers")]
    assert len(counted) == len(set(counted)) == 27


def test_only_the_embedding_rows_of_tokens_that_occur_are_read(tiny: Any) -> None:
    Stream("m", tiny.model(), [np.array([5, 6, 200, 5], np.int64)])
    reads = [read[1:] for read in tiny.reads if read[0] == "model.embed_tokens.weight"]
    assert reads == [(5, 7), (200, 201)]


def test_layer_outputs_equal_the_whole_forward_bit_by_bit(tiny: Any, tokens: list[Tokens]) -> None:
    tiny.logits(np.stack(tokens))  # loads the weights into the network
    stream = Stream("m", tiny.model(), tokens)
    seen: list[list[torch.Tensor]] = []

    def observe(index: int, layer: int, bad: int | None) -> bool:
        seen.append(list(stream.states))
        return True

    run_layers([stream], observe)
    for window, ids in enumerate(tokens):
        with torch.no_grad():
            expected = tiny.network(
                input_ids=torch.from_numpy(ids)[None], use_cache=False, output_hidden_states=True
            ).hidden_states
        for layer in range(2):  # transformers gives the last one after the final norm
            assert torch.equal(seen[layer][window], expected[layer + 1])


def test_a_stream_that_stops_does_not_hold_the_others_up(tiny: Any, tokens: list[Tokens]) -> None:
    streams = [Stream(name, tiny.model(), tokens) for name in ("a", "b", "c")]
    seen: list[tuple[int, int]] = []

    def observe(index: int, layer: int, bad: int | None) -> bool:
        seen.append((layer, index))
        return index != 1

    run_layers(streams, observe)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2)]
    assert torch.equal(streams[0].states[0], streams[2].states[0])


def test_steps_that_are_done_and_streams_that_stopped_are_neither_read_nor_run(tiny: Any, tokens: list[Tokens]) -> None:
    streams = [Stream(name, tiny.model(), tokens) for name in ("a", "b", "c")]
    tiny.reads.clear()
    seen: list[tuple[int, int]] = []
    ticks: list[int] = []

    def observe(index: int, layer: int, bad: int | None) -> bool:
        seen.append((layer, index))
        return True

    run_layers(streams, observe, lambda done, total, label: ticks.append(done), first=4, stopped={2})
    assert seen == [(1, 1), (2, 0), (2, 1)]
    assert ticks[0] == 4 * len(tokens) + 1
    assert {name.split(".")[2] for name, _, _ in tiny.reads} == {"1", "2"}
    tiny.reads.clear()
    run_layers(streams, observe, first=9)
    assert tiny.reads == []


def test_an_error_while_reading_ahead_reaches_the_caller(tiny: Any, tokens: list[Tokens]) -> None:
    model = tiny.model()

    def source(names: Sequence[str]) -> Callable[[], dict[str, torch.Tensor]]:
        if names[0].startswith("model.layers.1"):
            raise ModelError("the file is gone")
        return stored_weights(model)(names)

    with pytest.raises(ModelError, match="the file is gone"):
        run([Stream("m", model, tokens, source)])


def test_token_ids_past_the_embedding_are_an_error(tiny: Any) -> None:
    with pytest.raises(ModelError, match="the tokenizer gave id 300, the embedding has 300 rows"):
        Stream("m", tiny.model(), [np.array([1, 300], np.int64)])


SHAPE = {
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
}
OTHERS = {
    "qwen2": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"head_dim": 16, "sliding_window": 16, "final_logit_softcapping": 5.0},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 3},
    "bloom": {"n_head": 4, "n_layer": 3},
}


@pytest.mark.parametrize("model_type", list(OTHERS))
def test_other_families_replay_to_the_logits_of_their_own_forward(model_type: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {**SHAPE, **OTHERS[model_type]}
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields)).eval()
    real = {name: value.detach().clone() for name, value in network.named_parameters()}
    replay = Replay({"model_type": model_type, **fields})
    assert set(replay.shapes) == set(real)
    replay.load_outer({name: real[name] for name in replay.outer_names})
    ids = torch.randint(2, 120, (32,), generator=torch.Generator().manual_seed(1))
    hidden = replay.embed(real[replay.embedding_name], ids)
    for layer, names in enumerate(replay.layer_names):
        replay.load(layer, {name: real[name] for name in names})
        hidden = replay.run_layer(layer, hidden)
        replay.release(layer)
    with torch.no_grad():
        expected = network(input_ids=ids[None], use_cache=False).logits[0, 8:]
    assert torch.allclose(replay.logits(hidden[:, 8:], real[replay.head_name]), expected, atol=1e-5)


def test_models_that_cannot_be_replayed_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="t5"):
        Replay({"model_type": "t5"})
    with pytest.raises(ModelError, match="no-such-family"):
        Replay({"model_type": "no-such-family"})
    with pytest.raises(ModelError, match="gemma3n"):
        Replay({"model_type": "gemma3n"})
    with pytest.raises(ModelError, match="no model_type"):
        Replay({})


def test_layers_that_are_given_a_second_stream_are_refused() -> None:
    replay = Replay({"model_type": "llama", **SHAPE})
    layer = replay.layers[0]

    def with_original(*args: Any, **kwargs: Any) -> Any:
        return stand_in(*args, original_hidden_states=args[0], **kwargs)

    stand_in, layer.forward = layer.forward, with_original
    with pytest.raises(ModelError, match="llama: its layers are given more than the hidden state"):
        replay.run_layer(0, torch.zeros(1, 4, 64))
