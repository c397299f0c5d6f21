"""llama-perplexity's `--kl-divergence-base` file in the reference's place."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from meta_checkpoints import write_meta
from smelt.api import convert, quantize
from smelt.api import validate as validate_files
from smelt.convert.options import OpenOptions
from smelt.errors import FormatError, InputError, UsageError
from smelt.validate.llama_base import LlamaBase, open_llama_base
from smelt.validate.options import ValidateOptions
from smelt.validate.protocols import encode
from smelt.validate.question import Subject
from smelt.validate.recorded import open_recorded, validate_recorded
from smelt.validate.report import ValidationReport
from smelt.validate.run import validate
from smelt.validate.terminal import render
from smelt.validate.texts import Text

N_CTX = 64
OPTIONS = ValidateOptions(resamples=200, slice_rows=77, generate=0)
ROUNDING = 16 / 65535  # nats between two codes, at most

Array = np.ndarray[Any, Any]


def base_bytes(logits: Array, tokens: Array) -> bytes:
    """llama-perplexity's file of logits float32[chunks, n, vocabulary] and tokens int32[chunks, n_ctx], in its arithmetic."""
    n_vocab = logits.shape[-1]
    parts = [b"_logits_", struct.pack("<3i", tokens.shape[1], n_vocab, len(tokens)), tokens.astype("<i4").tobytes()]
    for row in logits.reshape(-1, n_vocab).astype(np.float32):
        top = row.max()
        low = max(row.min(), np.float32(top - 16))
        log_sum = np.float32(math.log(float(np.exp(row - top).sum(dtype=np.float64))))
        scale = np.float32((top - low) / np.float32(65535))
        codes = np.zeros(n_vocab + n_vocab % 2, "<u2")
        if scale:
            codes[:n_vocab] = np.where(row > low, np.rint((row - low) * (np.float32(1) / scale)), 0).astype("<u2")
        parts += [struct.pack("<2f", scale, low - top - log_sum), codes.tobytes()]
    return b"".join(parts)


def tiny_base(tiny: Any, text: str) -> tuple[bytes, Array]:
    """The file of a tiny model, and the windows that llama-perplexity evaluates for it."""
    ids = encode(tiny.model().tokenizer, text)
    tokens = np.array(ids[: len(ids) // N_CTX * N_CTX]).reshape(-1, N_CTX)
    windows = tokens.copy()
    windows[:, 0] = 1
    return base_bytes(tiny.logits(windows)[:, N_CTX // 2 : -1].float().numpy(), tokens), windows


def decoded(content: bytes, n_vocab: int, n_chunks: int) -> Array:
    """Log-probabilities float64[chunks, n, vocabulary], as llama-perplexity reads them back."""
    n = N_CTX - 1 - N_CTX // 2
    rows = np.frombuffer(content, np.uint8, offset=20 + 4 * N_CTX * n_chunks).reshape(n_chunks, n, -1)
    scale, low = np.ascontiguousarray(rows[..., :8]).view("<f4").astype(np.float64).transpose(2, 0, 1)[..., None]
    return np.ascontiguousarray(rows[..., 8:]).view("<u2")[..., :n_vocab] * scale + low


def check(path: Path, tiny: Any, options: ValidateOptions = OPTIONS, texts: tuple[Text, ...] = ()) -> ValidationReport:
    return validate_recorded(open_llama_base(path), [Subject("cand", tiny.model())], texts, options)


def gate(report: ValidationReport, name: str) -> Any:
    return next(gate for gate in report.candidates[0].gates if gate.name == name)


def test_the_numbers_are_those_that_llama_perplexity_computes(tiny: Any, text: str, tmp_path: Path) -> None:
    noisy = tiny.noisy(0.2)
    content, windows = tiny_base(tiny, text)
    (tmp_path / "base").write_bytes(content)
    report = check(tmp_path / "base", noisy)
    r = decoded(content, 300, len(windows))
    q = torch.log_softmax(noisy.logits(windows)[:, N_CTX // 2 : -1], dim=-1).numpy()
    targets = windows[:, N_CTX // 2 + 1 :, None]
    kld = np.where(r > -16, np.exp(r) * (r - q), 0).sum(-1)
    found = report.candidates[0].drift
    assert found is not None
    assert found.kld.mean.mean == pytest.approx(kld.mean(), abs=1e-6)
    assert found.kld.max == pytest.approx(kld.max(), abs=1e-5)
    nll_base, nll = (-np.take_along_axis(odds, targets, 2) for odds in (r, q))
    assert found.delta_ln_ppl.mean == pytest.approx((nll - nll_base).mean(), abs=1e-6)
    assert report.reference.perplexity == pytest.approx(math.exp(nll_base.mean()), rel=1e-9)
    assert found.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-6)
    shift = np.exp(-nll) - np.exp(-nll_base)
    assert found.target_shift.rms == pytest.approx(math.sqrt((shift**2).mean()), abs=1e-7)
    assert found.top1_agreement.mean == pytest.approx((r.argmax(-1) == q.argmax(-1)).mean(), abs=1e-12)
    back = (np.exp(q) * (q - r)).sum(-1)
    assert found.reverse_kld.mean.mean == pytest.approx(back.mean(), abs=1e-6)


def test_they_are_within_the_rounding_of_what_the_reference_itself_gives(tiny: Any, text: str, tmp_path: Path) -> None:
    noisy = tiny.noisy(0.2)
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    recorded = check(tmp_path / "base", noisy).candidates[0].drift
    candidate = Subject("cand", noisy.model())
    options = replace(OPTIONS, n_ctx=N_CTX)
    direct = validate(Subject("ref", tiny.model()), [candidate], [Text("text", text)], options).candidates[0].drift
    assert recorded is not None
    assert direct is not None
    assert recorded.kld.mean.mean == pytest.approx(direct.kld.mean.mean, abs=ROUNDING)
    assert recorded.delta_ln_ppl.mean == pytest.approx(direct.delta_ln_ppl.mean, abs=ROUNDING)
    assert recorded.perplexity == direct.perplexity


def test_what_needs_the_reference_itself_is_not_measured_and_does_not_fail(
    tiny: Any, text: str, tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    report = check(tmp_path / "base", tiny)
    for name in ("tensors", "config", "tokenizer"):
        assert gate(report, name).passed
        assert gate(report, name).reason.startswith("not measured: ")
    assert report.candidates[0].layers == ()
    assert report.noise_floor is None
    document = report.document()
    assert document["reference"]["bits_per_weight"] is None
    assert document["protocol"] == "llamacpp"
    assert document["n_ctx"] == N_CTX
    assert "16-bit log-probabilities, token 1 first in each chunk" in document["notes"][-1]
    assert "bits per weight, perplexity" not in render(report)


def test_the_text_asks_the_tokenizer_when_it_is_given(
    tiny: Any, text: str, shifted_tokenizer: type, tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    assert gate(check(tmp_path / "base", tiny, texts=(Text("text", text),)), "tokenizer").reason == "the same token ids"
    other = Subject("cand", tiny.model(tokenizer=shifted_tokenizer))
    found = validate_recorded(open_llama_base(tmp_path / "base"), [other], [Text("text", text)], OPTIONS)
    assert not gate(found, "tokenizer").passed


def test_fewer_chunks_are_the_first_ones(tiny: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    report = check(tmp_path / "base", tiny.noisy(0.1), replace(OPTIONS, chunks=3))
    (tmp_path / "short").write_bytes(tiny_base(tiny, text[: 3 * N_CTX - 1])[0])
    alone = check(tmp_path / "short", tiny.noisy(0.1))
    assert report.evaluation.chunks == 3
    assert report.candidates[0].drift == alone.candidates[0].drift


def test_a_begin_of_text_token_goes_where_the_file_begins_with_it(tiny: Any, text: str, tmp_path: Path) -> None:
    content, windows = tiny_base(tiny, text)
    (tmp_path / "base").write_bytes(content)
    base = open_llama_base(tmp_path / "base")
    with_bos = base.ask([], [Subject("c", tiny.model())], OPTIONS)
    assert [window.tokens.tolist() for window in with_bos.windows] == windows.tolist()
    by_config = base.ask([], [Subject("c", tiny.model(tokenizer=None))], OPTIONS)
    assert [window.tokens[0] for window in by_config.windows] == [1] * len(windows)
    (tmp_path / "plain").write_bytes(content[:20] + struct.pack("<i", 5) + content[24:])
    without = open_llama_base(tmp_path / "plain").ask([], [Subject("c", tiny.model())], OPTIONS)
    assert without.windows[1].tokens[0] == base.tokens[1, 0] != 1


def patched(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda c: c[:12], "is 12 bytes long, its header alone takes 20"),
        (lambda c: c[:-1], "it holds 9 whole chunks of 10"),
        (lambda c: c[:100], "it holds 0 whole chunks of 10"),
        (lambda c: c + b"\0", "bytes trail"),
        (lambda c: patched(c, 8, struct.pack("<i", 2**31 - 1)), "take"),
        (lambda c: patched(c, 8, struct.pack("<i", -64)), "n_ctx -64"),
        (lambda c: patched(c, 12, struct.pack("<i", 2**31 - 1)), "it holds 0 whole chunks"),
        (lambda c: patched(c, 16, struct.pack("<i", 2**31 - 1)), "it holds"),
        (lambda c: patched(c, 16, struct.pack("<i", 0)), "n_chunk 0"),
        (lambda c: patched(c, 20 + 4 * 70, struct.pack("<i", 300)), "token 6 of chunk 1 is 300, wanted 0 to 299"),
        (lambda c: patched(c, 24, struct.pack("<i", -1)), "token 1 of chunk 0 is -1"),
    ],
)
def test_a_header_that_lies_is_refused_before_anything_is_read(
    tiny: Any, text: str, tmp_path: Path, damage: Any, said: str
) -> None:
    (tmp_path / "base").write_bytes(damage(tiny_base(tiny, text)[0]))
    with pytest.raises(FormatError, match=said):
        open_llama_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("scale", "low", "said"),
    [
        (math.nan, -5.0, "scored position 2, byte .* scale nan"),
        (1e-4, math.inf, "min inf"),
        (-1e-4, 0.0, "scale -0.0001"),
        (1.0, 0.0, "give no log-probabilities"),
        (0.0, -1.0, "chunk 1: the probabilities of scored position 2 add up to 110.4"),
        (0.0, -15.0, "add up to"),
    ],
)
def test_rows_that_are_no_log_probabilities_are_refused(
    tiny: Any, text: str, tmp_path: Path, scale: float, low: float, said: str
) -> None:
    content, windows = tiny_base(tiny, text)
    at = 20 + windows.size * 4 + (31 + 2) * (8 + 2 * 300)
    (tmp_path / "base").write_bytes(patched(content, at, struct.pack("<2f", scale, low)))
    with pytest.raises(FormatError, match=said):
        check(tmp_path / "base", tiny)


def test_a_candidate_of_another_vocabulary_fails_and_the_others_are_measured(
    tiny: Any, text: str, tmp_path: Path
) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    model = tiny.model()
    tensors = dict(model.tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tiny.lazy(name, np.pad(tiny.weights[name], ((0, 8), (0, 0))), model.tensors[name].dtype)
    wider = replace(model, tensors=tensors, config={**model.config, "vocab_size": 308})
    broken = replace(model, tensors={n: t for n, t in model.tensors.items() if n != "model.norm.weight"})
    subjects = [Subject("wider", wider), Subject("broken", broken), Subject("same", model)]
    report = validate_recorded(open_llama_base(tmp_path / "base"), subjects, [], OPTIONS)
    reasons = [next(gate.reason for gate in found.gates if gate.name == "tensors") for found in report.candidates]
    assert reasons[0] == "lm_head.weight has 308 rows, the vocabulary of base 300 tokens"
    assert "missing: model.norm.weight" in reasons[1]
    assert [found.passed for found in report.candidates] == [False, False, True]
    assert report.candidates[2].drift is not None


def test_nan_in_a_candidate_fails_by_its_name(tiny: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    damaged = tiny.copy()
    damaged.weights["model.layers.1.mlp.down_proj.weight"][3, 5] = np.nan
    report = check(tmp_path / "base", damaged)
    assert gate(report, "finite").reason == "model.layers.1.mlp.down_proj.weight (F32): 1 NaN of 6144 weights"
    assert report.candidates[0].drift is None
    assert not report.passed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(OPTIONS, protocol="gptq"), "holds what protocol llamacpp scores"),
        (replace(OPTIONS, n_ctx=32), "was made with -c 64"),
        (replace(OPTIONS, stride=8), "do not overlap"),
        (replace(OPTIONS, chunks=11), "holds 10"),
        (replace(OPTIONS, attribute=True), "no layers"),
        (replace(OPTIONS, save_reference=Path("x")), "recorded reference already"),
    ],
)
def test_what_asks_another_question_is_refused(
    tiny: Any, text: str, tmp_path: Path, options: ValidateOptions, said: str
) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    with pytest.raises(UsageError, match=said):
        check(tmp_path / "base", tiny, options)


def test_the_options_that_say_the_same_are_taken(tiny: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(tiny_base(tiny, text)[0])
    report = check(tmp_path / "base", tiny, replace(OPTIONS, protocol="llamacpp", n_ctx=N_CTX, chunks=10))
    assert report.evaluation.chunks == 10


def test_it_is_found_by_its_first_bytes_and_is_no_model(tiny: Any, text: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(tiny_base(tiny, text)[0])
    assert isinstance(open_recorded(tmp_path / "m.gguf"), LlamaBase)
    with pytest.raises(InputError, match="give it as the REFERENCE of smelt validate"):
        validate_files(tmp_path / "m.gguf", [tmp_path / "m.gguf"])


def test_llama_cpps_own_logits_judge_a_candidate(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python computes the base file's logits")
    write_meta(tmp_path / "meta", dim=256, n_heads=4, n_kv_heads=2)
    facts = OpenOptions(context_length=256)
    convert(tmp_path / "meta", tmp_path / "f32.gguf", dtype="f32", options=facts)
    quantize(tmp_path / "meta", tmp_path / "q4_0.gguf", "q4_0", options=facts)
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.\n  Indented.\n" * 8
    model = llama_cpp.Llama(
        str(tmp_path / "f32.gguf"), n_ctx=N_CTX, n_batch=N_CTX, logits_all=True, verbose=False, type_k=0, type_v=0
    )
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    tokens = np.array(ids[: len(ids) // N_CTX * N_CTX]).reshape(-1, N_CTX)
    logits = []
    for row in tokens:
        model.reset()
        model.eval([model.token_bos(), *row[1:].tolist()])
        logits.append(np.array(model.scores[N_CTX // 2 : N_CTX - 1], np.float32))
    (tmp_path / "base.kld").write_bytes(base_bytes(np.stack(logits), tokens))
    candidates = [tmp_path / "f32.gguf", tmp_path / "q4_0.gguf"]
    recorded = validate_files(tmp_path / "base.kld", candidates, text, OPTIONS)
    direct = validate_files(tmp_path / "f32.gguf", candidates, text, replace(OPTIONS, n_ctx=N_CTX))
    assert gate(recorded, "tokenizer").passed
    assert recorded.evaluation.texts[0].token_ids_sha256 == direct.evaluation.texts[0].token_ids_sha256
    for found, wanted in zip(recorded.candidates, direct.candidates, strict=True):
        assert found.drift is not None
        assert wanted.drift is not None
        assert found.drift.kld.mean.mean == pytest.approx(wanted.drift.kld.mean.mean, abs=ROUNDING)
        # Of this random model some tokens that came are more than 16 nats below the likeliest: stored as 16.
        assert found.drift.delta_ln_ppl.mean == pytest.approx(wanted.drift.delta_ln_ppl.mean, abs=0.01)
        assert found.drift.perplexity == wanted.drift.perplexity
        assert found.drift.top1_agreement.mean == pytest.approx(wanted.drift.top1_agreement.mean, abs=0.02)
    assert recorded.reference.perplexity == pytest.approx(direct.reference.perplexity, rel=0.01)
