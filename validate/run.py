"""The measurements themselves: perplexity of one model, and candidates against a reference.

    texts -> windows -> weights against weights, slab by slab -> every model's layers in step -> head in slices -> gates
                                                                                                  -> generations

The reference runs a second time on a few windows, its activations rounded to bf16 after each layer: the noise floor. A
candidate that cannot be run (a tensor is missing, misshapen, or not finite) fails without being run; a reference that
cannot is an error.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..convert.progress import Progress, silent
from ..errors import UsageError
from .baseline_write import saver
from .bootstrap import interval
from .forward import Layers, follow, open_stream, refuse_broken_logits, run_models
from .generations import with_generations
from .head import score
from .options import ValidateOptions
from .question import Subject, ask
from .report import PerplexityResult, Reference, ValidationReport
from .setting import open_setting
from .texts import Text
from .verdict import judge
from .weights import WeightsDrift, compare_weights


def measure_perplexity(
    subject: Subject, text: Text, options: ValidateOptions | None = None, progress: Progress = silent
) -> PerplexityResult:
    """Perplexity of one text. NonFiniteError where a weight or an activation is not finite; InputError if it is too short."""
    options = options or ValidateOptions()
    asked = ask(subject, [text], options)
    with open_setting("perplexity", [subject], asked, options, progress) as setting:
        streams = [open_stream(subject, [window.tokens for window in asked.windows], setting)]
        follow(streams, Layers(streams, 1), setting)
        scored = [window.scored for window in asked.windows]
        scores = score(streams, scored, options.slice_rows, setting.parts.head)[0]
    refuse_broken_logits(subject, scores)
    nll = interval([window.nll for window in scores], options.resamples, options.seed)
    return PerplexityResult(subject.path, setting.said(asked.evaluation), nll)


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
    if not candidates and options.save_reference is None:
        raise UsageError("nothing to validate: name at least one candidate")
    asked = ask(reference, texts, options)
    save = None
    if options.save_reference is not None:
        sources = [path for subject in (reference, *candidates) for path in subject.model.files]
        save = saver(options.save_reference, options.overwrite, reference, asked, sources)
    with open_setting("validate", [reference, *candidates], asked, options, progress) as setting:
        weights = setting.journal.recall(
            "weights",
            list[WeightsDrift],
            lambda: compare_weights(
                reference.model, [c.model for c in candidates], options.threads, setting.parts.weights
            ),
        )
        runnable = [index for index, drift_ in enumerate(weights) if drift_.is_runnable]
        chosen = [candidates[index] for index in runnable]
        measured = run_models(reference, chosen, asked, options, setting, save)
    by_index = dict(zip(runnable, measured.candidates, strict=True))
    results = tuple(
        judge(reference, candidate, asked, weights[index], by_index.get(index), options)
        for index, candidate in enumerate(candidates)
    )
    model = reference.model
    nbytes = sum(tensor.nbytes for tensor in model.tensors.values())
    held = Reference(reference.path, model.bits_per_weight, model.parameters, nbytes, measured.perplexities)
    report = ValidationReport(setting.said(asked.evaluation), held, results, measured.noise_floor)
    return with_generations(report, reference, candidates, options, setting.parts.generations)
