"""The measurements themselves: perplexity of one model, and candidates against a reference.

    texts -> windows -> weights against weights, slab by slab -> every model's layers in step -> head in slices -> gates

The reference runs a second time on a few windows, its activations rounded to bf16 after each layer: the noise floor. A
candidate that cannot be run (a tensor is missing, misshapen, or not finite) fails without being run; a reference that
cannot is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..convert.progress import Progress, silent
from ..errors import UsageError
from .bootstrap import interval
from .forward import Layers, refuse_broken_logits, run_models
from .head import score
from .options import ValidateOptions
from .question import Subject, ask
from .report import PerplexityResult, Reference, ValidationReport
from .stream import Stream, run_layers
from .texts import Text
from .verdict import judge
from .weights import compare_weights


def measure_perplexity(
    subject: Subject, text: Text, options: ValidateOptions | None = None, progress: Progress = silent
) -> PerplexityResult:
    """Perplexity of one text. NonFiniteError where a weight or an activation is not finite; InputError if it is too short."""
    options = options or ValidateOptions()
    asked = ask(subject, [text], options)
    streams = [Stream(subject.path, subject.model, [window.tokens for window in asked.windows])]
    run_layers(streams, Layers(streams, 1), progress)
    scores = score(streams, [window.scored for window in asked.windows], options.slice_rows, progress)[0]
    refuse_broken_logits(subject, scores)
    nll = interval([window.nll for window in scores], options.resamples, options.seed)
    return PerplexityResult(subject.path, asked.evaluation, nll)


def validate(
    reference: Subject,
    candidates: Sequence[Subject],
    texts: Sequence[Text],
    options: ValidateOptions | None = None,
    progress: Progress = silent,
) -> ValidationReport:
    """How far each candidate is from the reference on each text, and whether that is within its limits.

    The reference's layers run once, whatever the number of candidates. InputError where the reference cannot be run or a
    text is too short; a damaged candidate is no error but a failed gate that names the damage.
    """
    options = options or ValidateOptions()
    if not candidates:
        raise UsageError("nothing to validate: name at least one candidate")
    asked = ask(reference, texts, options)
    weights = compare_weights(reference.model, [c.model for c in candidates], options.threads, progress)
    runnable = [index for index, drift_ in enumerate(weights) if drift_.is_runnable]
    measured = run_models(reference, [candidates[index] for index in runnable], asked, options, progress)
    by_index = dict(zip(runnable, measured.candidates, strict=True))
    results = tuple(
        judge(reference, candidate, asked, weights[index], by_index.get(index), options)
        for index, candidate in enumerate(candidates)
    )
    model = reference.model
    nbytes = sum(tensor.nbytes for tensor in model.tensors.values())
    held = Reference(reference.path, model.bits_per_weight, model.parameters, nbytes, measured.perplexities)
    return ValidationReport(asked.evaluation, held, results, measured.noise_floor)
