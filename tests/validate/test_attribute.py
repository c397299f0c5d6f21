"""What one layer does by itself, against the reference in memory with that layer's weights exchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from smelt.validate.branches import Branches
from smelt.validate.layers import apart
from smelt.validate.options import ValidateOptions
from smelt.validate.protocols import protocol, windows
from smelt.validate.question import FEW_CHUNKS, Subject
from smelt.validate.report import CandidateResult
from smelt.validate.run import validate
from smelt.validate.stream import Stream, run_layers
from smelt.validate.texts import Text

OPTIONS = ValidateOptions(n_ctx=64, resamples=100, slice_rows=77, attribute=True, generate=0)
UP = "model.layers.1.mlp.up_proj.weight"


def measured(reference: Any, candidates: list[Any], text: str) -> tuple[CandidateResult, ...]:
    subjects = [Subject(str(index), each.model()) for index, each in enumerate(candidates)]
    return validate(Subject("ref", reference.model()), subjects, [Text("text", text)], OPTIONS).candidates


def few_windows(tiny: Any, text: str) -> np.ndarray[Any, Any]:
    tokenizer = tiny.model().tokenizer
    cut = windows([1, *tokenizer.encode(text)], tokenizer, protocol("llamacpp", 64))
    return np.stack([window.tokens for window in cut[:FEW_CHUNKS]])


def odds(tiny: Any, text: str) -> torch.Tensor:
    return torch.log_softmax(tiny.logits(few_windows(tiny, text))[:, 32:-1], dim=-1)


def with_part(tiny: Any, other: Any, starts: tuple[str, ...]) -> Any:
    """The weights of `tiny`, those whose names begin with one of `starts` from `other`."""
    mixed = tiny.copy()
    mixed.weights |= {name: values for name, values in other.weights.items() if name.startswith(starts)}
    return mixed


def test_what_each_part_costs_alone_equals_the_model_with_that_part_exchanged(tiny: Any, text: str) -> None:
    noisy, noisier = tiny.noisy(0.05), tiny.noisy(0.2, seed=2)
    p = odds(tiny, text)
    for candidate, found in zip((noisy, noisier), measured(tiny, [noisy, noisier], text), strict=True):
        assert found.alone is not None
        told = [found.alone.embedding, *(layer.kld_alone for layer in found.layers), found.alone.head]
        parts = [("model.embed_tokens",), *((f"model.layers.{k}.",) for k in range(3)), ("lm_head", "model.norm")]
        for part, kld in zip(parts, told, strict=True):
            q = odds(with_part(tiny, candidate, part), text)
            expected = float((p.exp() * (p - q)).sum(-1).mean())
            assert expected > 1e-4
            assert kld == pytest.approx(expected, abs=1e-6)


def test_the_isolated_error_equals_the_layer_run_on_the_references_own_input(tiny: Any, text: str) -> None:
    noisy = tiny.noisy(0.1)
    found = measured(tiny, [noisy], text)[0]
    tokens = torch.from_numpy(few_windows(tiny, text))
    for layer in range(3):
        states = []
        for weights in (tiny, with_part(tiny, noisy, (f"model.layers.{layer}.",))):
            weights.logits(tokens.numpy()[:1])  # loads these weights into the network
            seen: list[torch.Tensor] = []
            hook = tiny.network.model.layers[layer].register_forward_hook(lambda *a, seen=seen: seen.append(a[2]))
            with torch.no_grad():
                for row in tokens:
                    tiny.network(input_ids=row[None], use_cache=False)
            hook.remove()
            states.append(seen)
        isolated = found.layers[layer].isolated
        assert isolated is not None
        expected = apart(*states)
        assert isolated.relative_error == pytest.approx(expected.relative_error, rel=1e-5)
        assert isolated.cosine == pytest.approx(expected.cosine, abs=1e-9)
    assert found.layers[2].isolated.relative_error < found.layers[2].accumulated.relative_error  # type: ignore[union-attr]
    assert found.layers[0].isolated.relative_error < found.layers[0].accumulated.relative_error  # type: ignore[union-attr]


def test_the_same_weights_give_exact_zeros(tiny: Any, text: str) -> None:
    found = measured(tiny, [tiny.copy()], text)[0]
    assert found.alone is not None
    assert (found.alone.embedding, found.alone.layers, found.alone.head) == (0.0, (0.0, 0.0, 0.0), 0.0)
    for layer in found.layers:
        assert layer.isolated is not None
        assert (layer.isolated.cosine, layer.isolated.relative_error) == (1.0, 0.0)


def test_only_the_layer_that_was_changed_costs_anything(tiny: Any, text: str) -> None:
    found = measured(tiny, [with_part(tiny, tiny.noisy(0.2), ("model.layers.1.",))], text)[0]
    assert found.alone is not None
    assert (found.alone.embedding, found.alone.head) == (0.0, 0.0)
    assert [kld == 0.0 for kld in found.alone.layers] == [True, False, True]
    assert [layer.isolated.relative_error == 0.0 for layer in found.layers if layer.isolated] == [True, False, True]
    document = [layer["kld_alone"] for layer in found.document(())["layers"]]
    assert document == list(found.alone.layers)


def test_a_layer_that_overflows_on_the_references_input_fails_by_its_number(tiny: Any, text: str) -> None:
    # Layer 0 makes its residual zero, so that layer 1 overflows on the reference's input and not on the candidate's.
    damaged = tiny.copy()
    damaged.weights["model.embed_tokens.weight"][:] = 0
    damaged.weights[UP] *= np.float32(1e22)
    damaged.weights[UP.replace("up_proj", "gate_proj")] *= np.float32(1e22)
    found = measured(tiny, [damaged], text)[0]
    reason = next(gate for gate in found.gates if gate.name == "finite").reason
    assert reason == "layer 1 of 3 gives NaN or infinity on the reference's own input"
    assert (found.drifts, len(found.layers)) == ((), 1)


def test_a_branch_that_overflows_later_is_infinitely_far_and_stops_nobody(tiny: Any, text: str) -> None:
    few = list(few_windows(tiny, text))
    streams = [Stream(name, each.model(), few) for name, each in (("a", tiny), ("b", tiny.noisy(0.1)))]
    branches = Branches(streams, attribute=True)

    def observe(index: int, layer: int, bad: int | None) -> bool:
        if index == 0 and layer == 2:
            streams[0].riders[1][0] = streams[0].riders[1][0] * np.inf
        return index == 0 or branches.isolated(index, layer) is not None

    run_layers(streams, observe)
    alone = branches.alone(1, [(32, window[33:]) for window in few], 77)
    assert [np.isfinite(kld) for kld in (alone.embedding, *alone.layers, alone.head)] == [True, False, True, True, True]


def test_no_weight_is_read_twice_for_it(tiny: Any, text: str) -> None:
    candidate = tiny.noisy(0.1)
    streams = [
        Stream(name, each.model(), list(few_windows(tiny, text))) for name, each in (("a", tiny), ("b", candidate))
    ]
    branches = Branches(streams, attribute=True)

    def observe(index: int, layer: int, bad: int | None) -> bool:
        return index == 0 or branches.isolated(index, layer) is not None

    run_layers(streams, observe)
    for each in (tiny, candidate):
        read = [name for name, _, _ in each.reads if name.startswith("model.layers")]
        assert len(read) == len(set(read)) == 27
    assert len(streams[0].riders) == 4, "the embedding and three layers"
    assert streams[1].riders == []
