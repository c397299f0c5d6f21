"""Which scheme fits the card: file + KV cache + compute buffer against the memory that there is.

    file     the GGUF file, to the byte; llama.cpp loads all of it
    KV       2 * layers * kv_heads * head_dim * context * bytes of an element: keys and values of every position
    compute  an estimate of llama.cpp's compute buffer for batches of 512 tokens without flash attention, the largest of

             attention   512 * 4 * (heads * context + context + 5 * hidden + 2 * kv_heads * head_dim)   scores, mask, states
             ffn         512 * 4 * (3 * ffn + 5 * hidden + context)                                     gate, up, product
             logits      512 * 4 * (vocabulary + hidden)

Measured with llama.cpp of mid-2026 on the CPU: see docs/fit.md. With flash attention the scores are never whole, so that
less is needed.

The pick is the largest file that fits: bits are what quality follows. At the same bits Q4_0, Q4_1, Q5_0, Q5_1 and NVFP4
lose more than K- and IQ-types, so they are picked only where nothing else fits; at equal bits an IQ-type goes first.
Ternary types ruin a model that was not trained for them, and are never picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..convert.model import Model
from ..convert.plan import make_plan
from ..dtypes import DTYPES, F32, DType
from ..errors import UsageError
from ..formats.gguf_types import DEFAULT_ALIGNMENT, padded
from ..kernels.scheme import cast_scheme
from .choose import ChooseOptions, Types, choose_types
from .imatrix import Importance
from .recipes import RECIPES, Recipe

KV_DTYPES = ("f32", "f16", "q8_0", "q4_0")
BATCH = 512  # llama.cpp's n_ubatch
NEEDS_IMATRIX = "needs --imatrix"

_COARSE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "NVFP4")
_SPECIAL = {
    "TQ1_0": "for models trained in ternary weights",
    "TQ2_0": "for models trained in ternary weights",
    "MXFP4_MOE": "for mixtures of experts",
}


@dataclass(frozen=True)
class FitOptions:
    """vram: bytes that may be used; context: tokens; kv_dtype: one of `KV_DTYPES`; the rest as for quantize."""

    vram: int
    context: int
    kv_dtype: str = "f16"
    importance: Importance | None = None
    choose: ChooseOptions = field(default_factory=ChooseOptions)


@dataclass(frozen=True)
class FitChoice:
    """What one scheme would take, in bytes. `reason` says why smelt cannot make it, or would not; "" where it can."""

    scheme: str
    reason: str
    file_nbytes: int
    kv_nbytes: int
    compute_nbytes: int
    fits: bool

    @property
    def total_nbytes(self) -> int:
        """All that has to be in memory at once."""
        return self.file_nbytes + self.kv_nbytes + self.compute_nbytes

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """The larger, the better."""
        name = self.scheme.upper()
        return name not in _COARSE, self.file_nbytes, name.startswith("IQ")


@dataclass(frozen=True)
class Fit:
    """Every scheme's sizes, largest first, and the one to take; `pick` is None where none fits."""

    options: FitOptions
    architecture: str
    parameters: int
    choices: tuple[FitChoice, ...]
    pick: FitChoice | None
    notes: tuple[str, ...]

    def why_none(self) -> str:
        """The line for a user whose card holds none of the choices: how much the smallest takes."""
        able = [choice for choice in self.choices if not choice.reason] or self.choices
        least = min(able, key=lambda choice: choice.total_nbytes)
        waiting = [choice.scheme for choice in self.choices if choice.fits and choice.reason == NEEDS_IMATRIX]
        more = f", or say --imatrix FILE, with which {waiting[0]} fits" if waiting else ""
        return (
            f"nothing fits: {least.scheme}, the smallest that smelt makes of this model, takes "
            f"{least.total_nbytes / 2**30:.2f} GiB with {self.options.context} tokens, and {self.options.vram / 2**30:.2f} GiB "
            f"are given: take fewer tokens, --kv-dtype q8_0, or leave layers on the CPU{more}"
        )

    def document(self) -> dict[str, Any]:
        """The JSON of `smelt fit`."""
        return {
            "vram": self.options.vram,
            "context": self.options.context,
            "kv_dtype": self.options.kv_dtype,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "choices": [
                {
                    "scheme": choice.scheme,
                    "available": not choice.reason,
                    "reason": choice.reason,
                    "bits_per_weight": round(choice.file_nbytes * 8 / self.parameters, 3),
                    "file_bytes": choice.file_nbytes,
                    "kv_bytes": choice.kv_nbytes,
                    "compute_bytes": choice.compute_nbytes,
                    "total_bytes": choice.total_nbytes,
                    "fits": choice.fits,
                }
                for choice in self.choices
            ],
            "pick": None if self.pick is None else self.pick.scheme,
            "notes": list(self.notes),
        }


def fit_model(model: Model, options: FitOptions) -> Fit:
    """Size every recipe for `model`, and pick. Reads no data.

    UsageError for a KV dtype that llama.cpp does not keep, and for a source that is quantized already.
    """
    if options.kv_dtype not in KV_DTYPES:
        raise UsageError(f"--kv-dtype {options.kv_dtype}: wanted one of {', '.join(KV_DTYPES)}")
    packed = next((tensor.packed.scheme for tensor in model.tensors.values() if tensor.packed is not None), None)
    if model.matrix_dtype.is_block or packed is not None:
        raise UsageError(
            f"{model.files[0]}: is quantized already ({packed or model.matrix_dtype}): start from the original, or say which "
            "scheme with smelt quantize --allow-requantize"
        )
    if "max_position_embeddings" not in model.config:  # a number in the header, of one size whatever it is
        model = replace(model, config={**model.config, "max_position_embeddings": options.context})
    notes = list(model.notes)
    if model.tokenizer is None:
        notes.append("no tokenizer.model: the vocabulary's 1 or 2 MB are not in the file sizes")
    header = _header_nbytes(model, options.importance)
    kv, compute = (
        kv_nbytes(model.config, options.context, options.kv_dtype),
        compute_nbytes(model.config, options.context),
    )
    choose = replace(options.choose, allow_fallback=True, imatrix=options.importance is not None)
    choices = []
    for recipe in RECIPES.values():
        types = choose_types(model, recipe, choose)
        size = header + sum(_stored_nbytes(model, name, dtype) for name, dtype in types.dtypes.items())
        reason = _reason(model, recipe, types, options)
        fits = size + kv + compute <= options.vram
        choices.append(FitChoice(recipe.name.lower(), reason, size, kv, compute, fits))
    choices.sort(key=lambda choice: (-choice.file_nbytes, choice.scheme))
    pick = max((c for c in choices if c.fits and not c.reason), key=lambda choice: choice.rank, default=None)
    return Fit(options, model.architecture, model.parameters, tuple(choices), pick, tuple(notes))


def kv_nbytes(config: Mapping[str, Any], context: int, kv_dtype: str) -> int:
    """Bytes of the KV cache of `context` tokens; rows of a head must divide into the type's blocks."""
    dtype = DTYPES[kv_dtype.upper()]
    rows = 2 * int(config["num_hidden_layers"]) * int(config["num_key_value_heads"]) * context
    return rows * dtype.row_nbytes(int(config["head_dim"]))


def compute_nbytes(config: Mapping[str, Any], context: int) -> int:
    """The estimate of the module's docstring, in bytes."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    kv_width = int(config["num_key_value_heads"]) * int(config["head_dim"])
    attention = heads * context + context + 5 * hidden + 2 * kv_width
    width = config["ffn_dim"] if "ffn_dim" in config else config["intermediate_size"]
    ffn = 3 * int(width) + 5 * hidden + context
    logits = int(config["vocab_size"]) + hidden
    return BATCH * 4 * max(attention, ffn, logits)


def _header_nbytes(model: Model, importance: Importance | None) -> int:
    """Bytes of the file before its tensors, padding included: they are the same for every recipe."""
    plan = make_plan(
        model,
        Path("any.gguf"),
        "gguf",
        {name: cast_scheme(F32) for name in model.tensors},
        recipe="",
        without_tokenizer=model.tokenizer is None,
        provenance=None if importance is None else importance.provenance,
    )
    return plan.nbytes - sum(_stored_nbytes(model, name, F32) for name in model.tensors)


def _stored_nbytes(model: Model, name: str, dtype: DType) -> int:
    return padded(dtype.tensor_nbytes(model.tensors[name].shape), DEFAULT_ALIGNMENT)


def _reason(model: Model, recipe: Recipe, types: Types, options: FitOptions) -> str:
    """Why this recipe is no choice, or ""."""
    source, base = model.matrix_dtype, DTYPES[recipe.base]
    if base != source and base.bits_per_weight >= source.bits_per_weight:
        return f"the source is {source}"
    if recipe.name in _SPECIAL:
        return _SPECIAL[recipe.name]
    if types.lacking:
        return f"smelt cannot encode {', '.join(types.lacking)} yet"
    if types.need_importance and options.importance is None:
        return NEEDS_IMATRIX
    if types.notes and not options.choose.allow_fallback:
        return f"{len(types.notes)} tensors' rows do not divide: --allow-fallback"
    return ""
