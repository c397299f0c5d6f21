"""Straight from any source to quantized files in one pass: open, choose, plan; the run is convert's.

a recipe          GGUF, every tensor's type by llama.cpp's rules (`choose`)
a plugin's scheme a Hugging Face folder: every matrix of the layers, with --pure the embedding and the head as well; norms,
                  biases, learned positions and routers stay as they are
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..convert.model import LazyTensor, Model
from ..convert.packed import packed_config, stored_as
from ..convert.plan import Plan, make_plan
from ..dtypes import F16
from ..errors import UsageError
from ..kernels.scheme import Scheme, cast_scheme
from .choose import ChooseOptions, choose, find_scheme, packed_matrices
from .imatrix import Importance, for_model
from .recipes import Recipe

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
        name = find_scheme(scheme).name.lower()
        path = target.with_name(target.name.replace(SCHEME, name))
        if path in found.values():
            raise UsageError(f"--scheme {scheme}: {name} is asked for twice")
        found[scheme] = path
    return found


def quantize_plan(model: Model, target: Path, options: QuantizeOptions) -> Plan:
    """The plan of one quantized target: a GGUF file by a recipe, a folder by a plugin's scheme.

    UsageError for a quantized source that is not allowed, a target of the other kind, or a recipe that needs importance.
    ModelError for importance that does not fit the model.
    """
    recipe = find_scheme(options.scheme)
    is_file = target.suffix.lower() == ".gguf"
    if isinstance(recipe, Recipe) != is_file:
        raise UsageError(
            f"{target}: {recipe.name} is a GGUF scheme: name a target that ends in .gguf"
            if isinstance(recipe, Recipe)
            else f"{target}: {recipe.name} is a plugin's scheme, which GGUF has no type for: name a folder"
        )
    quantized = sorted({_stored_as(tensor) for tensor in model.tensors.values()} - {""})
    if quantized and not options.allow_requantize:
        raise UsageError(
            f"{model.files[0]}: is quantized already ({', '.join(quantized)}), and a second rounding costs quality: start from "
            "the original, or say --allow-requantize"
        )
    again = (f"requantized from {', '.join(quantized)}",) if quantized else ()
    if not isinstance(recipe, Recipe):
        plan = _packed_plan(model, target, recipe, options)
        return replace(plan, notes=(*plan.notes, *again))
    importance = options.importance
    choice = choose(model, recipe, replace(options.choose, imatrix=importance is not None))
    values, notes = None, choice.notes
    if importance is not None:
        dtypes = {name: scheme.stored(model.tensors[name].shape)[""][1] for name, scheme in choice.schemes.items()}
        values, without = for_model(importance, model, dtypes)
        notes = (*notes, *without)
    notes = (*notes, *again)
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


def _stored_as(tensor: LazyTensor) -> str:
    """The block type or the plugin's scheme that a tensor is stored in; "" for plain numbers."""
    return tensor.packed.scheme if tensor.packed is not None else tensor.dtype.name if tensor.dtype.is_block else ""


def _as_it_is(model: Model, tensor: LazyTensor) -> Scheme:
    """The scheme of a tensor that stays: its own dtype, F16 in place of blocks; a norm as it was before GGUF made it F32."""
    if len(tensor.shape) < 2 and model.source == "gguf":
        return cast_scheme(model.norm_dtype)
    return cast_scheme(F16 if tensor.dtype.is_block else tensor.dtype)


def _packed_plan(model: Model, target: Path, scheme: Scheme, options: QuantizeOptions) -> Plan:
    """A folder whose matrices a plugin's scheme stores. UsageError for an option that speaks of GGUF's types."""
    choose = options.choose
    given = {
        "--tensor-type": choose.tensor_types,
        "--output-tensor-type": choose.output_type,
        "--token-embedding-type": choose.embedding_type,
        "--leave-output-tensor": choose.leave_output,
        "--imatrix": options.importance,
        "--allow-fallback": choose.allow_fallback,
    }
    if odd := [name for name, value in given.items() if value]:
        raise UsageError(
            f"{odd[0]}: speaks of GGUF's types and names, {scheme.name} is a plugin's scheme: leave it out"
        )
    chosen = packed_matrices(model, pure=choose.pure)
    schemes = {name: scheme if name in chosen else _as_it_is(model, tensor) for name, tensor in model.tensors.items()}
    for shape in chosen.values():
        stored_as(scheme, shape)
    config = {**model.config, "quantization_config": packed_config(scheme, chosen)}
    return make_plan(replace(model, config=config), target, "safetensors", schemes, recipe=scheme.name)
