"""A saved reference says of a candidate exactly what the reference itself says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smelt.convert.inspect import inspect
from smelt.convert.model import LazyTensor, Model
from smelt.dtypes import F16, Q8_0
from smelt.errors import FormatError, InputError, UsageError
from smelt.formats.safetensors_read import read_file
from smelt.kernels.scheme import kernel
from smelt.validate.baseline import FACTS, Baseline
from smelt.validate.baseline_read import open_baseline
from smelt.validate.options import ValidateOptions
from smelt.validate.question import Subject
from smelt.validate.recorded import open_recorded, validate_recorded
from smelt.validate.report import ValidationReport
from smelt.validate.run import validate
from smelt.validate.terminal import render
from smelt.validate.texts import Text

OPTIONS = ValidateOptions(n_ctx=64, resamples=200, slice_rows=77, generate=0)
UNMEASURED = {"tensors"}  # gates that need the reference's weights


def save(model: Model, path: Path, texts: list[Text], options: ValidateOptions = OPTIONS) -> ValidationReport:
    return validate(Subject("ref", model), [], texts, replace(options, save_reference=path))


def drifts(report: ValidationReport) -> dict[str, Any]:
    """Everything that is measured on tokens, and every gate on it."""
    document = report.document()
    for candidate in document["candidates"]:
        candidate["gates"] = [gate for gate in candidate["gates"] if gate["name"] not in UNMEASURED]
        for key in ("layers", "worst_tensors", "embedding_kld_alone", "head_kld_alone"):
            candidate.pop(key)
    document["reference"].pop("path")
    document.pop("notes")
    return document


def gate(report: ValidationReport, name: str) -> Any:
    return next(gate for gate in report.candidates[0].gates if gate.name == name)


@pytest.mark.parametrize(
    ("protocol", "tied"), [("llamacpp", False), ("llamacpp", True), ("gptq", False), ("strided", False)]
)
def test_every_drift_is_bit_for_bit_what_the_reference_itself_gives(
    make: Callable[..., Any], text: str, tmp_path: Path, protocol: str, tied: bool
) -> None:
    tiny = make(tied=tied)
    options = replace(OPTIONS, protocol=protocol, stride=40 if protocol == "strided" else None)
    texts = [Text("wiki", text[:300]), Text("code", text[::-1][:150])]
    candidates = [Subject("noisy", tiny.noisy(0.05).model()), Subject("f16", tiny.model(F16))]
    path = tmp_path / "ref.safetensors"
    direct = validate(Subject("ref", tiny.model()), candidates, texts, replace(options, save_reference=path))
    saved = open_recorded(path)
    assert isinstance(saved, Baseline)
    again = validate_recorded(saved, candidates, texts, replace(options, protocol=None, n_ctx=None, stride=None))
    assert drifts(again) == drifts(direct)
    assert again.noise_floor == direct.noise_floor
    assert again.candidates[0].layers == ()
    assert gate(again, "tensors").reason == "not measured: ref.safetensors holds no weights to compare these with"


def test_no_layer_of_the_reference_is_read_and_no_state_is_kept_twice(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    stored, _ = read_file(path)
    assert sorted(stored) == ["head.lm_head.weight", "head.model.norm.weight", "hidden", "ids.0", "nll"]
    assert stored["hidden"].shape == (10 * 31, 64)
    tiny.reads.clear()
    validate_recorded(open_baseline(path), [Subject("c", tiny.noisy(0.1).model())], [], OPTIONS)
    assert tiny.reads == []


def test_a_reference_of_block_types_is_kept_as_stored(tiny: Any, text: str, tmp_path: Path) -> None:
    model = q8_0(tiny)
    direct = validate(
        Subject("ref", model),
        [Subject("c", tiny.noisy(0.05).model())],
        [Text("text", text)],
        replace(OPTIONS, save_reference=tmp_path / "ref.safetensors"),
    )
    stored, _ = read_file(tmp_path / "ref.safetensors")
    assert (stored["head.lm_head.weight"].dtype.name, stored["head.lm_head.weight"].shape) == ("U8", (300, 68))
    candidates = [Subject("c", tiny.noisy(0.05).model())]
    again = validate_recorded(open_baseline(tmp_path / "ref.safetensors"), candidates, [Text("text", text)], OPTIONS)
    assert drifts(again) == drifts(direct)
    assert again.reference.bits_per_weight == model.bits_per_weight


def q8_0(tiny: Any) -> Model:
    """The model with every matrix in Q8_0 but the embedding of 64 columns, whose rows are two blocks."""
    model = tiny.model()
    tensors = {}
    for name, tensor in model.tensors.items():
        packed = kernel(Q8_0).encode(tensor.read_float32()) if len(tensor.shape) == 2 else None
        tensors[name] = tensor if packed is None else LazyTensor(name, tensor.shape, Q8_0, rows_of(packed))
    return replace(model, tensors=tensors)


def rows_of(packed: np.ndarray[Any, Any]) -> Callable[[int, int], Any]:
    return lambda start, stop: packed[start:stop].copy()


def test_a_layer_that_returns_a_tuple_is_replayed_as_one(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    assert open_baseline(path).layer_returns is None
    facts = json.loads(read_file(path)[1][FACTS])
    facts["model"]["layer_returns"] = 1
    rewrite(path, facts)
    assert open_baseline(path)._network(torch.device("cpu")).returns == 1


def test_fewer_chunks_are_the_first_ones_of_each_text(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    texts = [Text("wiki", text), Text("code", text[::-1])]
    save(tiny.model(), path, texts)
    candidates = [Subject("c", tiny.noisy(0.05).model())]
    few = replace(OPTIONS, chunks=2)
    again = validate_recorded(open_baseline(path), candidates, [], few)
    direct = validate(Subject("ref", tiny.model()), candidates, texts, few)
    assert again.candidates[0].drifts == direct.candidates[0].drifts
    assert again.evaluation.texts == direct.evaluation.texts


def test_the_text_may_be_given_and_asks_the_tokenizer_then(
    tiny: Any, text: str, shifted_tokenizer: type, tmp_path: Path
) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    other = [Subject("c", tiny.model(tokenizer=shifted_tokenizer))]
    silent = validate_recorded(open_baseline(path), other, [], OPTIONS)
    assert gate(silent, "tokenizer").passed
    assert gate(silent, "tokenizer").reason.startswith("not measured: ")
    told = validate_recorded(open_baseline(path), other, [Text("by another name", text)], OPTIONS)
    wanted = validate(Subject("ref", tiny.model()), other, [Text("text", text)], replace(OPTIONS, noise_floor=False))
    assert gate(told, "tokenizer") == gate(wanted, "tokenizer")
    assert not gate(told, "tokenizer").passed
    with pytest.raises(UsageError, match=r"text: is not what .* was saved on \(text\)"):
        validate_recorded(open_baseline(path), other, [Text("text", text + "x")], OPTIONS)


def test_special_tokens_and_facts_of_the_model_are_still_compared(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    model = tiny.model()
    save(model, path, [Text("text", text)])
    other = replace(
        model,
        tokenizer=replace(model.tokenizer, eos_id=5),
        config={**model.config, "rope_theta": 500000.0},
        tensors={name: t for name, t in model.tensors.items() if "layers.2.mlp.up" not in name},
    )
    found = validate_recorded(open_baseline(path), [Subject("c", other)], [], OPTIONS)
    assert "eos_id is 5, the reference's is 2" in gate(found, "special tokens").reason
    assert gate(found, "tensors").reason == "model.layers.2.mlp.up_proj.weight is missing"
    changed = replace(other, tensors=model.tensors)
    found = validate_recorded(open_baseline(path), [Subject("c", changed)], [], OPTIONS)
    assert "rope_theta" in gate(found, "config").reason
    assert not gate(found, "config").passed


def test_a_candidate_stored_as_the_reference_was_is_held_to_a_conversions_limit(
    tiny: Any, text: str, tmp_path: Path
) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    report = validate_recorded(open_baseline(path), [Subject("c", tiny.model())], [], OPTIONS)
    assert gate(report, "kld").limit == 1e-6
    assert report.candidates[0].drift is not None
    assert report.candidates[0].drift.kld.max == 0.0
    assert report.passed
    assert "saved from ref by smelt" in report.evaluation.notes[-1]
    assert "not measured: ref.safetensors" in " ".join(render(report).split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(OPTIONS, protocol="gptq"), "--protocol gptq: .* was saved with llamacpp"),
        (replace(OPTIONS, n_ctx=32), "--ctx 32: .* was saved with 64"),
        (replace(OPTIONS, stride=8), "--stride 8: .* was saved with 64"),
        (replace(OPTIONS, chunks=11), "--chunks 11: .* holds 10"),
        (replace(OPTIONS, attribute=True), "no layers"),
        (replace(OPTIONS, save_reference=Path("x")), "recorded reference already"),
    ],
)
def test_what_asks_another_question_is_refused(
    tiny: Any, text: str, tmp_path: Path, options: ValidateOptions, said: str
) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    with pytest.raises(UsageError, match=said):
        validate_recorded(open_baseline(path), [Subject("c", tiny.model())], [], options)


def test_a_target_that_exists_or_is_an_input_is_refused_before_any_work(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already: --force replaces it"):
        save(tiny.model(), path, [Text("text", text)])
    assert not any("layers" in name for name, _, _ in tiny.reads)
    source = replace(tiny.model(), files=(path,))
    with pytest.raises(UsageError, match="is the input"):
        save(source, path, [Text("text", text)], replace(OPTIONS, overwrite=True))
    assert path.read_bytes() == b"mine"
    save(tiny.model(), path, [Text("text", text)], replace(OPTIONS, overwrite=True))
    assert open_baseline(path).texts[0].chunks == 10


def test_the_reference_alone_is_saved_without_candidates(tiny: Any, text: str, tmp_path: Path) -> None:
    report = save(tiny.model(), tmp_path / "ref.safetensors", [Text("text", text)])
    assert report.candidates == ()
    assert report.passed
    assert report.reference.perplexity is not None
    with pytest.raises(UsageError, match="nothing to validate"):
        validate(Subject("ref", tiny.model()), [], [Text("text", text)], OPTIONS)


def rewrite(path: Path, facts: Any) -> None:
    """The same file with other facts in its header."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][FACTS] = facts if isinstance(facts, str) else json.dumps(facts)
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 2, "its version is 2"),
        ("texts", {}, "its texts is"),
        ("texts", [], "holds no text"),
        ("texts", [3], "text 0 is 3"),
        ("protocol", {"name": "gptq", "n_ctx": True, "stride": 64}, "its n_ctx is True"),
        ("protocol", {"name": "odd", "n_ctx": 64, "stride": 64}, "its protocol cannot be"),
        ("protocol", {"name": "llamacpp", "n_ctx": 32, "stride": 32}, "not the ones that were scored"),
        ("noise_floor", 3, "its noise_floor is 3"),
        ("tokenizer", {"kind": "x"}, "its tokenizer is"),
        ("model", {"tensors": {"lm_head.weight": [[300, 64], "F16"]}}, "head.lm_head.weight is F32"),
        ("model", {"tensors": {"lm_head.weight": [[300, "x"], "F32"]}}, "wanted \\[shape, type\\]"),
        ("model", {"tensors": {"lm_head.weight": [[300, 64], []]}}, "wanted \\[shape, type\\]"),
        ("model", {"tensors": 1}, "its tensors is 1"),
    ],
)
def test_facts_that_cannot_be_are_refused(
    tiny: Any, text: str, tmp_path: Path, key: str, value: Any, said: str
) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)], replace(OPTIONS, chunks=2))
    facts = json.loads(read_file(path)[1][FACTS])
    facts[key] = {**facts["model"], **value} if key == "model" else value
    rewrite(path, facts)
    with pytest.raises(FormatError, match=said):
        validate_recorded(open_baseline(path), [Subject("c", tiny.model())])


def test_a_state_that_changed_on_the_disk_is_found_out(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "ref.safetensors"
    save(tiny.model(), path, [Text("text", text)])
    content = bytearray(path.read_bytes())
    at = open_baseline(path).stored["hidden"].offset + 4 * 64 * 40
    content[at : at + 4 * 64] = np.full(64, 3.0, "<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(FormatError, match="window 1 gives a mean nll of"):
        validate_recorded(open_baseline(path), [Subject("c", tiny.model())], [], OPTIONS)


def test_it_is_found_by_its_first_bytes_and_is_no_model(tiny: Any, text: str, tmp_path: Path) -> None:
    path = tmp_path / "saved"
    save(tiny.model(), path, [Text("text", text)])
    assert isinstance(open_recorded(path), Baseline)
    with pytest.raises(InputError, match="smelt validate --save-reference wrote"):
        inspect(path)
    assert open_recorded(tmp_path) is None
    assert open_recorded(tmp_path / "absent") is None
