"""What models write: transformers' own greedy words, the first that differs, and why there are none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from smelt.convert.tokenizer import BYTE_LEVEL, SENTENCEPIECE, Tokenizer
from smelt.convert.tokenizer_bytes import text_of
from smelt.validate.generations import PROMPTS, first_divergence, greedy, token_texts, whole_network, write_on
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.run import validate
from smelt.validate.texts import Text

OPTIONS = ValidateOptions(n_ctx=64, chunks=2, resamples=50, noise_floor=False, generate=6)


def by_transformers(tiny: Any, ids: list[int], n: int) -> list[int]:
    """Without a cache, in the network that holds all weights."""
    found: list[int] = []
    for _ in range(n):
        found.append(int(tiny.logits(np.array([ids + found]))[0, -1].argmax()))
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_the_words_are_those_of_transformers_with_the_whole_model_in_memory(make: Any, tied: bool) -> None:
    tiny = make(tied=tied)
    ids = [1, 50, 60, 70]
    assert greedy(whole_network(tiny.model()), ids, 8, None) == by_transformers(tiny, ids, 8)


def test_the_end_token_is_the_last(tiny: Any) -> None:
    network = whole_network(tiny.model())
    free = greedy(network, [1, 50], 8, None)
    assert free is not None
    end = free[2]
    assert greedy(network, [1, 50], 8, end) == free[: free.index(end) + 1]


def test_a_logit_that_is_not_finite_ends_it(tiny: Any) -> None:
    network = whole_network(tiny.model())
    with torch.no_grad():
        network.lm_head.weight[5] = torch.inf
    assert greedy(network, [1, 50], 8, None) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "wanted"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [], None)],
)
def test_the_first_divergence_is_an_index(ours: list[int], theirs: list[int], wanted: int | None) -> None:
    assert first_divergence(ours, theirs) == wanted


def test_the_report_holds_both_texts_and_a_model_agrees_with_itself(tiny: Any, text: str) -> None:
    subjects = [Subject("same", tiny.model()), Subject("noisy", tiny.noisy(0.5).model())]
    documents = [
        validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS).document() for _ in range(2)
    ]
    assert json.dumps(documents[0]) == json.dumps(documents[1])
    same, noisy = (found["generations"] for found in documents[0]["candidates"])
    assert [each["name"] for each in same] == list(PROMPTS)
    for each in same:
        assert (each["first_divergence"], each["agreement"], each["tokens"]) == (None, 1.0, 6)
        assert each["reference"] == each["candidate"]
    for each in noisy:
        assert 0 <= each["first_divergence"] < 6
        assert each["agreement"] == each["first_divergence"] / 6
        assert each["reference"] != each["candidate"]


def test_a_candidate_that_cannot_be_run_writes_nothing(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    damaged.weights["model.layers.1.mlp.down_proj.weight"][0, 0] = np.nan
    subjects = [Subject("damaged", damaged.model()), Subject("same", tiny.model())]
    report = validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS)
    assert report.candidates[0].generations == ()
    assert len(report.candidates[1].generations) == len(PROMPTS)


def test_a_model_beyond_the_memory_limit_says_what_would_allow_it(tiny: Any) -> None:
    subject = Subject("ref", tiny.model())
    needed = 4 * subject.model.parameters
    written = write_on(subject, [subject], ValidateOptions(generate=4, max_ram=needed - 1))
    assert written.candidates == ((),)
    assert f"--max-ram {-(-needed // 10**6)}MB would allow them" in written.notes[0]
    assert write_on(subject, [subject], ValidateOptions(generate=2, max_ram=needed)).notes == ()


def test_none_are_made_where_none_were_asked_for_or_there_is_no_tokenizer(tiny: Any) -> None:
    subject, mute = Subject("ref", tiny.model()), Subject("ref", tiny.model(tokenizer=None))
    assert write_on(subject, [subject], ValidateOptions(generate=0)).notes == ()
    assert write_on(mute, [mute], ValidateOptions(generate=4)).notes == ("no generations: ref has no tokenizer",)


def test_nothing_is_written_beyond_what_the_model_was_trained_on(tiny: Any) -> None:
    model = tiny.model()
    model.config["max_position_embeddings"] = 1 + len(PROMPTS["prose"]) + 2
    written = write_on(Subject("ref", model), [Subject("c", model)], ValidateOptions(generate=6)).candidates[0]
    lengths = {each.name: len(each.reference) for each in written}
    assert lengths["prose"] == 2
    assert all(len(each.reference) <= 6 for each in written)


def test_tokens_become_text_and_a_character_of_several_comes_with_its_last() -> None:
    pieces = (("<unk>", 0.0, 2), ("\u2581caf", 0.0, 1), ("<0xC3>", 0.0, 6), ("<0xA9>", 0.0, 6), ("</s>", 0.0, 3))
    words = Tokenizer(SENTENCEPIECE, pieces, bos_id=None, eos_id=4, unk_id=0)
    assert token_texts(words, [1, 2, 3, 4]) == [" caf", "", "é", "</s>"]
    assert token_texts(words, [1, 2]) == [" caf", "�"]
    assert token_texts(words, [9]) == ["<9>"]
    level = Tokenizer(BYTE_LEVEL, ((text_of(b" caf\xc3"), 0.0, 1), (text_of(b"\xa9"), 0.0, 1)), None, None, None)
    assert "".join(token_texts(level, [0, 1])) == " café"
