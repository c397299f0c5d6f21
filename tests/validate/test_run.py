from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import open_checkpoint
from smelt.convert.options import OpenOptions
from smelt.dtypes import BF16, F16
from smelt.errors import InputError, ModelError, NonFiniteError, UsageError
from smelt.validate.limits import Limits
from smelt.validate.options import ValidateOptions
from smelt.validate.protocols import protocol, windows
from smelt.validate.question import Subject
from smelt.validate.report import CandidateResult, ValidationReport
from smelt.validate.run import measure_perplexity, validate
from smelt.validate.terminal import render
from smelt.validate.texts import Text

OPTIONS = ValidateOptions(n_ctx=64, resamples=1000, slice_rows=77, generate=0)
LOOSE = ValidateOptions(n_ctx=64, resamples=1000, limits=Limits(1e9, 1e9, 0.0), generate=0)
ZEROED = "model.layers.1.mlp.down_proj.weight"


def check(reference: Any, candidate: Any, text: str, options: ValidateOptions = OPTIONS) -> ValidationReport:
    return validate(
        Subject("ref", reference.model()), [Subject("cand", candidate.model())], [Text("text", text)], options
    )


def gate(result: CandidateResult, name: str) -> Any:
    return next(gate for gate in result.gates if gate.name == name)


def direct(tiny: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(log probabilities float64[windows, 31, vocabulary], targets [windows, 31]) of the llamacpp protocol at 64."""
    tokenizer = tiny.model().tokenizer
    cut = windows([1, *tokenizer.encode(text)], tokenizer, protocol("llamacpp", 64))
    table = np.stack([window.tokens for window in cut])
    odds = torch.log_softmax(tiny.logits(table)[:, 32:-1], dim=-1)
    return odds, torch.from_numpy(table[:, 33:].copy())


def direct_perplexity(tiny: Any, text: str) -> float:
    odds, targets = direct(tiny, text)
    return float(torch.exp(-odds.gather(2, targets[..., None]).mean()))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_streamed_perplexity_equals_the_whole_model_in_memory(
    make: Callable[..., Any], text: str, tied: bool, n_kv_heads: int
) -> None:
    tiny = make(tied=tied, n_kv_heads=n_kv_heads)
    found = measure_perplexity(Subject("m", tiny.model()), Text("text", text), OPTIONS)
    assert found.perplexity == pytest.approx(direct_perplexity(tiny, text), rel=1e-6)
    assert found.evaluation.tokens == 10 * 31


def test_drift_equals_the_direct_computation(tiny: Any, text: str) -> None:
    noisy = tiny.noisy(0.05)
    found = check(tiny, noisy, text).candidates[0].drift
    assert found is not None
    p, targets = direct(tiny, text)
    q, _ = direct(noisy, text)
    kld = (p.exp() * (p - q)).sum(-1)
    assert found.kld.mean.mean == pytest.approx(float(kld.mean()), abs=1e-6)
    assert found.kld.max == pytest.approx(float(kld.max()), abs=1e-6)
    assert found.kld.median == pytest.approx(float(np.median(kld.numpy())), abs=1e-6)
    assert found.top1_agreement.mean == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    change = (p - q).gather(2, targets[..., None])
    assert found.delta_ln_ppl.mean == pytest.approx(float(change.mean()), abs=1e-6)
    shift = (q.exp() - p.exp()).gather(2, targets[..., None])
    assert found.target_shift.mean == pytest.approx(float(shift.mean()), abs=1e-7)
    assert found.perplexity == pytest.approx(direct_perplexity(noisy, text), rel=1e-6)
    assert found.delta_ln_ppl.low < found.delta_ln_ppl.mean < found.delta_ln_ppl.high  # type: ignore[operator]


def test_both_divergences_overlaps_and_flips_equal_the_direct_computation(tiny: Any, text: str) -> None:
    noisy = tiny.noisy(0.2)
    found = check(tiny, noisy, text).candidates[0].drift
    assert found is not None
    p, targets = direct(tiny, text)
    q, _ = direct(noisy, text)
    reverse = (q.exp() * (q - p)).sum(-1)
    assert found.reverse_kld.mean.mean == pytest.approx(float(reverse.mean()), abs=1e-6)
    assert found.reverse_kld.p999 == pytest.approx(float(np.percentile(reverse.numpy(), 99.9)), abs=1e-6)
    assert found.reverse_kld.mean.mean != pytest.approx(found.kld.mean.mean, rel=1e-3)
    five = [rows.topk(5).indices for rows in (p, q)]
    overlap = (five[0][..., :, None] == five[1][..., None, :]).any(-1).double().mean()
    assert found.top5_agreement.mean == pytest.approx(float(overlap))
    before, after = p.argmax(-1), q.argmax(-1)
    flips = found.flips
    assert flips.changed == int((before != after).sum()) > 0
    assert flips.right_to_wrong == int(((before == targets) & (before != after)).sum())
    assert flips.wrong_to_right == int(((after == targets) & (before != after)).sum())
    assert flips.tokens == sum(band.tokens for band in flips.bands) == targets.numel()
    assert flips.changed == sum(band.flips for band in flips.bands)
    confidence = p.exp().max(-1).values
    lowest = flips.bands[0]
    assert lowest.tokens == int((confidence < lowest.high).sum())
    shift = (q.exp() - p.exp()).gather(2, targets[..., None]).flatten().numpy()
    assert found.target_shift.median == pytest.approx(float(np.median(shift)), abs=1e-7)
    assert found.target_shift.p01 == pytest.approx(float(np.percentile(shift, 0.1)), abs=1e-7)


@pytest.mark.parametrize("how", ["gptq", "strided"])
def test_perplexity_under_every_protocol_equals_a_forward_in_memory(tiny: Any, text: str, how: str) -> None:
    options = ValidateOptions(how, n_ctx=64, resamples=100, generate=0)
    tokenizer = tiny.model().tokenizer
    cut = windows([1, *tokenizer.encode(text)], tokenizer, protocol(how, 64))
    found = []
    for window in cut:
        first, targets = window.scored
        odds = torch.log_softmax(tiny.logits(window.tokens[None])[0, first:-1], dim=-1)
        found.append(-odds.gather(1, torch.from_numpy(targets.copy())[:, None])[:, 0])
    measured = measure_perplexity(Subject("m", tiny.model()), Text("text", text), options)
    assert measured.perplexity == pytest.approx(float(torch.cat(found).mean().exp()), rel=1e-6)
    assert measured.evaluation.protocol.stride == (32 if how == "strided" else 64)


def test_several_texts_have_a_section_each_and_one_verdict(tiny: Any, text: str) -> None:
    noisy = tiny.noisy(0.02)
    other = text[::-1]
    report = validate(
        Subject("ref", tiny.model()),
        [Subject("cand", noisy.model())],
        [Text("wiki", text), Text("code", other)],
        replace(OPTIONS, limits=Limits(max_kld=1e-9)),
    )
    for name, alone in (("wiki", check(tiny, noisy, text)), ("code", check(tiny, noisy, other))):
        index = [asked.name for asked in report.evaluation.texts].index(name)
        assert report.candidates[0].drifts[index] == alone.candidates[0].drift
        assert report.reference.perplexities[index] == alone.reference.perplexity
    failed = [(gate.name, gate.text) for gate in report.candidates[0].gates if not gate.passed]
    assert ("kld", "wiki") in failed
    assert ("kld", "code") in failed
    document = report.document()
    assert [part["name"] for part in document["texts"]] == ["wiki", "code"]
    assert document["candidates"][0]["kld"]["mean"] == document["candidates"][0]["texts"][0]["kld"]["mean"]
    assert "  on code" in render(report)


def test_token_ids_are_read_as_they_are(tiny: Any, text: str) -> None:
    ids = (1, *tiny.model().tokenizer.encode(text))
    given = Subject("m", tiny.model(tokenizer=None))
    found = measure_perplexity(given, Text("ids", ids=ids), replace(OPTIONS, protocol="gptq"))
    wanted = measure_perplexity(Subject("m", tiny.model()), Text("text", text), replace(OPTIONS, protocol="gptq"))
    assert found.perplexity == wanted.perplexity
    assert found.document()["text_sha256"] is None
    assert found.document()["token_ids_sha256"] == wanted.document()["token_ids_sha256"]


def test_the_noise_floor_is_what_rounded_activations_do(tiny: Any, text: str) -> None:
    floor = check(tiny, tiny, text).noise_floor
    assert floor is not None
    assert floor.chunks == 8
    assert 0 < floor.kld.mean < 1e-3
    assert check(tiny, tiny, text, replace(OPTIONS, noise_floor=False)).noise_floor is None


def test_another_rotary_base_fails_by_its_name(tiny: Any, text: str) -> None:
    model = tiny.model()
    other = replace(model, config={**model.config, "rope_theta": 500000.0})
    report = validate(Subject("ref", model), [Subject("cand", other)], [Text("text", text)], LOOSE)
    assert report.verdict == "fail"
    assert "rope_theta" in gate(report.candidates[0], "config").reason


def test_a_model_against_itself_is_exactly_zero_and_passes(tiny: Any, text: str) -> None:
    report = check(tiny, tiny, text)
    found = report.candidates[0]
    assert report.verdict == "pass"
    assert found.drift is not None
    change = found.drift.delta_ln_ppl
    assert (change.mean, change.low, change.high) == (0.0, 0.0, 0.0)
    assert found.drift.kld.max == 0.0
    assert found.drift.top1_agreement.low == 1.0
    assert [layer.accumulated.cosine for layer in found.layers] == [1.0, 1.0, 1.0]
    assert found.worst_tensors == ()


def test_one_chunk_has_no_interval_and_a_note_says_so(tiny: Any, text: str) -> None:
    report = check(tiny, tiny, text, ValidateOptions(n_ctx=64, chunks=1, generate=0))
    assert report.candidates[0].drift is not None
    assert report.candidates[0].drift.delta_ln_ppl.low is None
    assert "one chunk gives no interval" in report.evaluation.notes[0]
    assert report.passed


def test_a_zeroed_tensor_fails_and_is_named(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    damaged.weights[ZEROED][:] = 0
    found = check(tiny, damaged, text, LOOSE).candidates[0]
    assert found.verdict == "fail"
    assert gate(found, "tensors").reason == f"{ZEROED} is all zeros"
    assert found.worst_tensors[0].name == ZEROED
    assert [layer.accumulated.cosine == 1.0 for layer in found.layers] == [True, False, False]


def test_swapped_layers_fail_and_both_are_named_with_what_they_really_are(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    first, second = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 2))
    damaged.weights[first], damaged.weights[second] = damaged.weights[second], damaged.weights[first]
    reason = gate(check(tiny, damaged, text, LOOSE).candidates[0], "tensors").reason
    assert f"{first} (F32)" in reason
    assert f"it is the reference's {second}" in reason
    assert f"it is the reference's {first}" in reason


@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_a_candidate_with_a_non_finite_weight_fails_by_name_without_being_run(
    tiny: Any, text: str, value: float, said: str
) -> None:
    damaged = tiny.copy()
    damaged.weights[ZEROED][3, 5] = value
    found = check(tiny, damaged, text).candidates[0]
    assert found.verdict == "fail"
    assert gate(found, "finite").reason == f"{ZEROED} (F32): 1 {said} of 6144 weights"
    assert found.drift is None


def test_a_reference_with_a_nan_is_an_error_that_names_the_weight(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    damaged.weights[ZEROED][3, 5] = np.nan
    with pytest.raises(NonFiniteError, match=f"{ZEROED}: the reference's weight at row 3, column 5 is nan"):
        check(damaged, tiny, text)
    with pytest.raises(NonFiniteError, match=f"{ZEROED}: weight at row 3, column 5 is nan"):
        measure_perplexity(Subject("m", damaged.model()), Text("text", text), OPTIONS)


def test_activations_that_overflow_fail_by_layer_and_the_others_are_still_measured(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    damaged.weights[ZEROED] *= np.float32(1e38)
    damaged.weights["model.layers.1.mlp.up_proj.weight"] *= np.float32(1e18)
    subjects = [Subject("damaged", damaged.model()), Subject("same", tiny.model())]
    report = validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS)
    reason = gate(report.candidates[0], "finite").reason
    assert reason == "layer 1 of 3 gives NaN or infinity in chunk 0"
    assert report.candidates[0].drift is None
    assert report.candidates[1].passed
    assert report.verdict == "fail"


def test_missing_and_misshapen_tensors_fail_by_name(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    del damaged.weights["model.norm.weight"]
    damaged.weights[ZEROED] = damaged.weights[ZEROED][:, :-1]
    reason = gate(check(tiny, damaged, text).candidates[0], "tensors").reason
    assert "model.norm.weight is missing" in reason
    assert f"{ZEROED} has shape [64, 95], the reference's [64, 96]" in reason


def test_a_reference_without_all_its_tensors_is_an_error_that_lists_them(tiny: Any, text: str) -> None:
    damaged = tiny.copy()
    del damaged.weights["model.norm.weight"], damaged.weights[ZEROED]
    damaged.weights["model.extra.weight"] = np.ones(4, np.float32)
    with pytest.raises(ModelError) as caught:
        measure_perplexity(Subject("m", damaged.model()), Text("text", text), OPTIONS)
    for name in ("model.norm.weight", ZEROED, "model.extra.weight"):
        assert name in str(caught.value)


def test_another_tokenizer_fails_at_the_first_different_token(tiny: Any, text: str, shifted_tokenizer: type) -> None:
    other = Subject("cand", tiny.model(tokenizer=shifted_tokenizer))
    found = validate(Subject("ref", tiny.model()), [other], [Text("text", text)], OPTIONS).candidates[0]
    expected = 3 + text.encode()[10]
    assert gate(found, "tokenizer").reason == f"token 11 of the text is 2, the reference's is {expected}"
    assert not found.passed


def test_a_tied_reference_and_a_candidate_with_its_own_head_compare(make: Callable[..., Any], text: str) -> None:
    tied, untied = make(tied=True), make(tied=False)
    untied.weights = {**tied.weights, "lm_head.weight": tied.weights["model.embed_tokens.weight"].copy()}
    for reference, candidate in ((tied, untied), (untied, tied)):
        assert check(reference, candidate, text).passed


def test_sixteen_bit_candidates_pass_the_default_gates(tiny: Any, text: str) -> None:
    subjects = [Subject("f16", tiny.model(F16)), Subject("bf16", tiny.model(BF16))]
    report = validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS)
    f16, bf16 = report.candidates
    assert f16.bits_per_weight == 16
    assert f16.drift is not None
    assert 0 < f16.drift.kld.mean.mean < 1e-5
    assert f16.passed
    assert gate(bf16, "tensors").passed
    assert gate(bf16, "tensors").value == pytest.approx(0.0017, rel=0.2)


def test_limits_from_outside_replace_the_table(tiny: Any, text: str) -> None:
    noisy = tiny.noisy(0.01)
    strict = check(
        tiny, noisy, text, ValidateOptions(n_ctx=64, resamples=1000, limits=Limits(max_kld=1e-9), generate=0)
    )
    assert not gate(strict.candidates[0], "kld").passed
    assert gate(strict.candidates[0], "kld").limit == 1e-9


def test_the_report_is_deterministic_and_holds_no_nan(tiny: Any, text: str) -> None:
    damaged = tiny.noisy(0.1)
    damaged.weights[ZEROED][0, 0] = np.nan
    documents = []
    for _ in range(2):
        subjects = [Subject("damaged", damaged.model()), Subject("noisy", tiny.noisy(0.1).model())]
        report = validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS)
        documents.append(json.dumps(report.document(), allow_nan=False))
    assert documents[0] == documents[1]
    document = json.loads(documents[0])
    assert document["candidates"][0]["kld"] is None
    assert set(document["candidates"][1]["kld"]) >= {"mean", "median", "p99", "p999", "max"}
    assert document["tokens"] == 310


def test_too_short_a_text_says_how_many_tokens_there_are_and_are_wanted(tiny: Any) -> None:
    with pytest.raises(InputError, match="the text has 6 tokens, protocol llamacpp wants windows of 64"):
        measure_perplexity(Subject("m", tiny.model()), Text("text", "short"), OPTIONS)


def test_windows_longer_than_the_model_was_trained_on_are_refused(tiny: Any, text: str) -> None:
    with pytest.raises(UsageError, match="give --ctx 512 or fewer"):
        measure_perplexity(Subject("m", tiny.model()), Text("text", text), ValidateOptions("gptq"))


def test_a_model_without_a_tokenizer_cannot_be_scored(tiny: Any, text: str) -> None:
    with pytest.raises(InputError, match="has no tokenizer"):
        measure_perplexity(Subject("m", tiny.model(tokenizer=None)), Text("text", text), OPTIONS)


def test_progress_is_one_whole_that_never_goes_back(tiny: Any, text: str) -> None:
    seen: list[tuple[int, int, str]] = []
    measure_perplexity(Subject("m", tiny.model()), Text("text", text), OPTIONS, lambda *step: seen.append(step))
    assert [label for _, _, label in seen].count("layer 2/3") == 10
    assert seen[-1] == (1000, 1000, "output head")
    both = [seen]
    seen = []
    subjects = [Subject("noisy", tiny.noisy(0.1).model()), Subject("same", tiny.model())]
    validate(Subject("ref", tiny.model()), subjects, [Text("text", text)], OPTIONS, lambda *step: seen.append(step))
    assert seen[-1][0] == 1000
    for steps in (*both, seen):
        assert {total for _, total, _ in steps} == {1000}
        assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)


def test_the_terminal_report_names_verdict_gates_and_the_damaged_tensor(tiny: Any, text: str) -> None:
    damaged = tiny.noisy(0.01)
    damaged.weights[ZEROED][:] = 0
    shown = render(check(tiny, damaged, text))
    assert shown.startswith("FAIL  protocol llamacpp, n_ctx 64, 10 chunks, 310 tokens")
    assert f"{ZEROED} is all zeros" in " ".join(shown.split())
    for word in ("layer cosine", "99.9%", "worst tensors", "FAIL  kld"):
        assert word in shown
    assert max(len(line) for line in shown.splitlines()) <= 100


@pytest.mark.parametrize("key", ["pad_token_id", "output_hidden_states", "_attn_implementation"])
def test_what_a_config_says_beside_the_arithmetic_changes_nothing(tmp_path: Path, key: str) -> None:
    odd = {"pad_token_id": 512, "output_hidden_states": True, "_attn_implementation": "flash_attention_2"}[key]
    write_meta(tmp_path / "meta", dim=32, n_layers=1, n_heads=2)
    model = open_checkpoint(tmp_path / "meta", OpenOptions(context_length=64))
    options, text = ValidateOptions(n_ctx=32, chunks=1, generate=0), "some text of no importance\n" * 20
    plain = measure_perplexity(Subject("plain", model), Text("text", text), options)
    other = measure_perplexity(
        Subject("odd", replace(model, config={**model.config, key: odd})), Text("text", text), options
    )
    assert other.ln_perplexity == plain.ln_perplexity


def test_a_config_that_transformers_refuses_is_an_error_of_the_model(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta", dim=32, n_layers=1, n_heads=2)
    model = open_checkpoint(tmp_path / "meta", OpenOptions(context_length=64))
    broken = replace(model, config={**model.config, "attention_dropout": "abc"})
    with pytest.raises(ModelError, match="attention_dropout"):
        measure_perplexity(Subject("m", broken), Text("text", "some text\n" * 50), ValidateOptions(n_ctx=32, chunks=1))


def test_a_perplexity_that_no_float_holds_is_null_in_the_document(tmp_path: Path) -> None:
    written = write_meta(tmp_path / "meta", dim=32, n_layers=1, n_heads=2, dtype=torch.float32)
    write_meta(tmp_path / "wild", dim=32, n_layers=1, n_heads=2, dtype=torch.float32)
    path = tmp_path / "wild" / "consolidated.00.pth"
    torch.save({**written.state, "output.weight": written.state["output.weight"] * 1e5}, path)
    facts = OpenOptions(context_length=64)
    sane, wild = (Subject(n, open_checkpoint(tmp_path / n, facts)) for n in ("meta", "wild"))
    options, text = ValidateOptions(n_ctx=32, chunks=2, resamples=50, generate=0), "some text of no importance\n" * 20
    assert measure_perplexity(wild, Text("text", text), options).document()["perplexity"] is None
    for reference, candidate in ((sane, wild), (wild, sane)):
        report = validate(reference, [candidate], [Text("text", text)], options)
        assert not report.passed
        assert json.dumps(report.document(), allow_nan=False)
        assert render(report)
