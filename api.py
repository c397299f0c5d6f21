"""The Python API: what the command line does, as functions that return values.

    import smelt
    model = smelt.open_checkpoint("llama-2-7b")
    smelt.convert("llama-2-7b", "llama-2-7b-hf")
    smelt.quantize("llama-2-7b", "llama-2-7b.q4_k_m.gguf", scheme="q4_k_m")
    smelt.diff("llama-2-7b", "llama-2-7b-hf").equal
    smelt.validate("llama-2-7b", ["llama-2-7b.q4_k_m.gguf"], text=open("heldout.txt").read()).verdict

Every function raises `smelt.errors.SmeltError` with one line that says what, where and what next.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .convert.diff import DiffResult
from .convert.diff import diff as diff_models
from .convert.merge import SumCheck, merge_delta, merge_lora
from .convert.model import Model
from .convert.open import open_model
from .convert.options import OpenOptions
from .convert.plan import Plan, dtype_schemes, make_plan
from .convert.progress import Progress, silent
from .convert.run import RunOptions, RunResult, run
from .convert.verify import VerifyResult
from .convert.verify import verify as verify_files
from .convert.writers import target_format
from .convert.xor import is_xor, merge_xor
from .errors import UsageError

if TYPE_CHECKING:
    from .quantize.choose import ChooseOptions
    from .quantize.fit import Fit
    from .validate.options import ValidateOptions
    from .validate.report import PerplexityResult, ValidationReport
    from .validate.texts import Text

StrPath = str | os.PathLike[str]


def default_threads() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def open_checkpoint(path: StrPath, options: OpenOptions | None = None) -> Model:
    """Open a Meta folder, a Hugging Face folder or a GGUF file. Headers only; tensors are read when asked."""
    return open_model(Path(path), options)


def convert_plan(
    source: StrPath,
    target: StrPath,
    *,
    to: str | None = None,
    dtype: str = "source",
    max_shard_nbytes: int | None = None,
    n_shards: int | None = None,
    options: OpenOptions | None = None,
) -> Plan:
    """What `convert` would do: every file and byte, before any data is read."""
    options = options or OpenOptions()
    model = open_model(Path(source), options)
    wanted = target_format(Path(target), to)
    return make_plan(
        model,
        Path(target),
        wanted,
        dtype_schemes(model, wanted, dtype),
        recipe=f"convert --dtype {dtype}",
        max_shard_nbytes=max_shard_nbytes,
        n_shards=n_shards,
        without_tokenizer=options.skip_tokenizer,
    )


def convert(
    source: StrPath,
    target: StrPath,
    *,
    to: str | None = None,
    dtype: str = "source",
    max_shard_nbytes: int | None = None,
    n_shards: int | None = None,
    options: OpenOptions | None = None,
    force: bool = False,
    threads: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> RunResult:
    """Convert `source` to a Meta, metaseq or safetensors folder or to GGUF: bit-exact at the stored dtype, streaming.

    to                "meta", "metaseq", "safetensors", "gguf" or a plugin's format; by the target's suffix where it is None
    max_shard_nbytes  bytes of tensors in one file of a safetensors folder, or of a folder of GGUF parts
    n_shards          shards of a Meta folder; None: as many as the model was published in
    """
    plan = convert_plan(
        source, target, to=to, dtype=dtype, max_shard_nbytes=max_shard_nbytes, n_shards=n_shards, options=options
    )
    return run(plan, RunOptions(threads or default_threads(), force, device=device), progress)


def merge_plan(
    base: StrPath,
    target: StrPath,
    *,
    delta: StrPath | None = None,
    lora: StrPath | None = None,
    to: str | None = None,
    dtype: str = "source",
    integrity_check: bool = True,
    expected_sum: float | None = None,
    options: OpenOptions | None = None,
) -> Plan:
    """What `merge` would do with a LoRA adapter or a delta that is added; XORed files have no plan (see `merge`)."""
    options = options or OpenOptions()
    if (delta is None) == (lora is None):
        raise UsageError("say what to merge into the base: either --lora FOLDER or --delta FOLDER")
    if lora is not None:
        model = merge_lora(Path(base), Path(lora), options)
        recipe = f"merge --lora {Path(lora).name}"
    else:
        check = SumCheck(integrity_check, expected_sum)
        model = merge_delta(Path(base), Path(str(delta)), options, check)
        recipe = f"merge --delta {Path(str(delta)).name}"
    wanted = target_format(Path(target), to)
    schemes = dtype_schemes(model, wanted, dtype)
    return make_plan(model, Path(target), wanted, schemes, recipe=recipe, without_tokenizer=options.skip_tokenizer)


def merge(
    base: StrPath,
    target: StrPath,
    *,
    delta: StrPath | None = None,
    lora: StrPath | None = None,
    to: str | None = None,
    dtype: str = "source",
    integrity_check: bool = True,
    expected_sum: float | None = None,
    options: OpenOptions | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Merge an adapter of the peft library (`lora`), or a published delta (`delta`), into `base`, and write any format.

    A delta of XORed files makes the Hugging Face folder that they stand for; `to` and `dtype` are for the others.

    integrity_check  hold a float32 delta of LLaMA 7B with Alpaca's added token against the sum that Alpaca's recipe publishes
    expected_sum     the sum of all values of the merged model, where a recipe publishes another
    """
    if delta is not None and lora is None and is_xor(Path(delta)):
        return merge_xor(Path(base), Path(delta), Path(target), force=force, progress=progress or silent)
    plan = merge_plan(
        base,
        target,
        delta=delta,
        lora=lora,
        to=to,
        dtype=dtype,
        integrity_check=integrity_check,
        expected_sum=expected_sum,
        options=options,
    )
    return run(plan, RunOptions(threads or default_threads(), force), progress)


def quantized_plans(
    source: StrPath,
    target: StrPath,
    schemes: Sequence[str],
    *,
    imatrix: StrPath | None = None,
    allow_requantize: bool = False,
    choices: ChooseOptions | None = None,
    options: OpenOptions | None = None,
) -> tuple[Plan, ...]:
    """What `quantize` would do, a plan for each scheme: every tensor's type, every byte, before any data is read."""
    from .quantize.choose import ChooseOptions
    from .quantize.imatrix import read_imatrix
    from .quantize.quantize import QuantizeOptions, quantize_plan, targets

    options = options or OpenOptions()
    named = targets(Path(target), schemes)
    model = open_model(Path(source), options)
    importance = None if imatrix is None else read_imatrix(Path(imatrix))
    return tuple(
        quantize_plan(
            model,
            path,
            QuantizeOptions(scheme, allow_requantize, options.skip_tokenizer, choices or ChooseOptions(), importance),
        )
        for scheme, path in named.items()
    )


def quantized_plan(
    source: StrPath,
    target: StrPath,
    scheme: str,
    *,
    imatrix: StrPath | None = None,
    allow_requantize: bool = False,
    choices: ChooseOptions | None = None,
    options: OpenOptions | None = None,
) -> Plan:
    """The plan of one scheme."""
    return quantized_plans(
        source,
        target,
        [scheme],
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        choices=choices,
        options=options,
    )[0]


def quantize(
    source: StrPath,
    target: StrPath,
    scheme: str,
    *,
    imatrix: StrPath | None = None,
    allow_requantize: bool = False,
    choices: ChooseOptions | None = None,
    options: OpenOptions | None = None,
    force: bool = False,
    threads: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> RunResult:
    """Any source straight to a quantized GGUF file (by a plugin's scheme a folder), in one pass, no 16-bit file in between."""
    plan = quantized_plan(
        source,
        target,
        scheme,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        choices=choices,
        options=options,
    )
    return run(plan, RunOptions(threads or default_threads(), force, device=device), progress)


def fit(
    source: StrPath,
    vram: int,
    context: int,
    *,
    kv_dtype: str = "f16",
    dry_run: bool = True,
    vocab_size: int | None = None,
    imatrix: StrPath | None = None,
    choices: ChooseOptions | None = None,
    options: OpenOptions | None = None,
) -> Fit:
    """Every scheme's size against `vram` bytes with `context` tokens, and the pick; `quantize` makes it.

    For a dry run a Meta folder needs no more than params.json; otherwise the source is opened and must be whole.
    """
    from .convert.outline import open_outline
    from .quantize.choose import ChooseOptions
    from .quantize.fit import FitOptions, fit_model
    from .quantize.imatrix import read_imatrix

    options = options or OpenOptions()
    importance = None if imatrix is None else read_imatrix(Path(imatrix))
    model = open_outline(Path(source), options, vocab_size) if dry_run else open_model(Path(source), options)
    return fit_model(model, FitOptions(vram, context, kv_dtype, importance, choices or ChooseOptions()))


def diff(first: StrPath, second: StrPath, options: OpenOptions | None = None, tolerance: float = 0.0) -> DiffResult:
    """Compare two models' weights across formats, tensor by tensor: bit by bit, or up to a relative error."""
    options = options or OpenOptions(skip_tokenizer=True)
    return diff_models(open_model(Path(first), options), open_model(Path(second), options), tolerance)


def verify(path: StrPath, threads: int | None = None, progress: Progress = silent) -> VerifyResult:
    """Every file under `path` against the lists, manifests and published digests that speak of it."""
    return verify_files(Path(path), threads=threads or default_threads(), progress=progress)


def perplexity(
    model: StrPath,
    text: str | Text,
    measure: ValidateOptions | None = None,
    options: OpenOptions | None = None,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity of a model of any format on `text`, one layer in memory at a time."""
    from .validate.question import Subject
    from .validate.run import measure_perplexity

    subject = Subject(str(model), open_model(Path(model), options))
    return measure_perplexity(subject, _texts(text)[0], measure, progress or silent)


def validate(
    reference: StrPath,
    candidates: Sequence[StrPath],
    text: str | Text | Sequence[Text] = (),
    measure: ValidateOptions | None = None,
    options: OpenOptions | None = None,
    progress: Progress | None = None,
) -> ValidationReport:
    """Perplexity drift, KL divergence and flips of each candidate against the reference, with intervals and gates.

    reference  a model; a reference that was saved (`ValidateOptions.save_reference`); or llama-perplexity's
             `--kl-divergence-base` file. The last two hold the tokens, so they need no text
    text     a text, or several with their names (`smelt.validate.texts.Text`)
    options  facts about the models that their files leave out; they hold for all of them
    """
    from .validate.question import Subject
    from .validate.recorded import open_recorded, validate_recorded
    from .validate.run import validate as validate_subjects

    recorded, texts = open_recorded(Path(reference)), _texts(text)
    if recorded is None and not texts:
        raise UsageError("nothing to read: give --text FILE, or --token-ids FILE")
    models = [] if recorded is not None else [reference]
    subjects = [Subject(str(path), open_model(Path(path), options)) for path in (*models, *candidates)]
    if recorded is not None:
        return validate_recorded(recorded, subjects, texts, measure, progress or silent)
    first, *rest = subjects
    return validate_subjects(first, rest, texts, measure, progress or silent)


def _texts(text: str | Text | Sequence[Text]) -> list[Text]:
    from .validate.texts import Text

    if isinstance(text, str):
        return [Text("text", text)]
    return [text] if isinstance(text, Text) else list(text)
