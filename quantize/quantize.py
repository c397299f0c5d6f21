"""Straight from any source to quantized GGUF files in one pass: open, choose, plan; the run is convert's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..convert.model import Model
from ..convert.plan import Plan, make_plan
from ..errors import UsageError
from .choose import ChooseOptions, choose, find_recipe
from .imatrix import Importance, for_model

SCHEME = "{scheme}"  # stands for the recipe's name in a target's


@dataclass(frozen=True)
class QuantizeOptions:
    """scheme: a recipe's name; allow_requantize: take a source that is quantized already, at a loss.

    importance: how much each column of each matrix matters, where llama-imatrix has measured it.
    """

    scheme: str
    allow_requantize: bool = False
    without_tokenizer: bool = False
    choose: ChooseOptions = field(default_factory=ChooseOptions)
    importance: Importance | None = None


def targets(target: Path, schemes: Sequence[str]) -> dict[str, Path]:
    """{scheme: its target}: `{scheme}` in the name becomes the recipe's, in lower case. UsageError where two would meet."""
    if not schemes:
        raise UsageError("no scheme is named: say --scheme, for example q4_k_m")
    if len(schemes) > 1 and SCHEME not in target.name:
        raise UsageError(
            f"{target}: {len(schemes)} schemes need a name each: put {SCHEME} into TARGET, as m.{SCHEME}.gguf"
        )
    found: dict[str, Path] = {}
    for scheme in schemes:
        name = find_recipe(scheme).name.lower()
        path = target.with_name(target.name.replace(SCHEME, name))
        if path in found.values():
            raise UsageError(f"--scheme {scheme}: {name} is asked for twice")
        found[scheme] = path
    return found


def quantize_plan(model: Model, target: Path, options: QuantizeOptions) -> Plan:
    """The plan of one quantized GGUF.

    UsageError for a quantized source that is not allowed, a target that is no GGUF, or a recipe that needs importance.
    ModelError for importance that does not fit the model.
    """
    recipe = find_recipe(options.scheme)
    if target.suffix.lower() != ".gguf":
        raise UsageError(f"{target}: {recipe.name} is a GGUF scheme: name a target that ends in .gguf")
    quantized = sorted({tensor.dtype.name for tensor in model.tensors.values() if tensor.dtype.is_block})
    if quantized and not options.allow_requantize:
        raise UsageError(
            f"{model.files[0]}: is quantized already ({', '.join(quantized)}), and a second rounding costs quality: start from "
            "the original, or say --allow-requantize"
        )
    importance = options.importance
    choice = choose(model, recipe, replace(options.choose, imatrix=importance is not None))
    values, notes = None, choice.notes
    if importance is not None:
        dtypes = {name: scheme.stored(model.tensors[name].shape)[""][1] for name, scheme in choice.schemes.items()}
        values, without = for_model(importance, model, dtypes)
        notes = (*notes, *without)
    if quantized:
        notes = (*notes, f"requantized from {', '.join(quantized)}")
    plan = make_plan(
        model,
        target,
        "gguf",
        choice.schemes,
        recipe=recipe.name,
        file_type=recipe.file_type,
        without_tokenizer=options.without_tokenizer,
        importance=values,
        provenance=None if importance is None else importance.provenance,
    )
    more = () if importance is None else (importance.path,)
    return replace(plan, notes=(*plan.notes, *notes), sources=(*plan.sources, *more), inputs=(*plan.inputs, *more))
