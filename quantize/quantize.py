"""Straight from any source to a quantized GGUF in one pass: open, choose, plan; the run is convert's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ..convert.model import Model
from ..convert.plan import Plan, make_plan
from ..errors import UsageError
from .choose import ChooseOptions, choose, find_recipe


@dataclass(frozen=True)
class QuantizeOptions:
    """scheme: a recipe's name; allow_requantize: take a source that is quantized already, at a loss."""

    scheme: str
    allow_requantize: bool = False
    without_tokenizer: bool = False
    choose: ChooseOptions = field(default_factory=ChooseOptions)


def quantize_plan(model: Model, target: Path, options: QuantizeOptions) -> Plan:
    """The plan of one quantized GGUF. UsageError for a quantized source that is not allowed, or a target that is a folder."""
    recipe = find_recipe(options.scheme)
    if target.suffix.lower() != ".gguf":
        raise UsageError(f"{target}: {recipe.name} is a GGUF scheme: name a target that ends in .gguf")
    quantized = sorted({tensor.dtype.name for tensor in model.tensors.values() if tensor.dtype.is_block})
    if quantized and not options.allow_requantize:
        raise UsageError(
            f"{model.files[0]}: is quantized already ({', '.join(quantized)}), and a second rounding costs quality: start from "
            "the original, or say --allow-requantize"
        )
    choice = choose(model, recipe, options.choose)
    notes = choice.notes
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
    )
    return replace(plan, notes=(*plan.notes, *notes))
