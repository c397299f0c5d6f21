"""A plan places every byte of every output file before the first tensor is read.

    Model + {canonical name: Scheme}  ->  Plan(files, steps)

Each step is one logical weight: where it is read, how it is encoded, and the slots its stored tensors fill. Slots are
disjoint, so steps (and row ranges of one step) may run in any order and at once; sizes are known, so a dry run tells all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..dtypes import DTYPES, F16, F32, DType
from ..errors import ModelError, UsageError
from ..formats.checkpoint import FileLayout, TensorSpec
from ..kernels.scheme import Rows, Scheme, cast_scheme
from .architecture import family_by
from .gguf import FILE_TYPES, PLAIN, gguf_file, to_gguf_tensor, tokenizer_of
from .hugging_face import TORCH_NAMES, hugging_face_layout
from .model import Assumption, LazyTensor, Model

Target = Literal["safetensors", "gguf"]
Schemes = Mapping[str, Scheme]

MAX_SHARD = 5_000_000_000


@dataclass(frozen=True)
class Place:
    """Where one stored tensor goes: a file of the plan, the byte its first row starts at, and the bytes of a row."""

    file: str
    offset: int
    row_nbytes: int


@dataclass(frozen=True)
class Step:
    """One logical weight. `copies` is True where the stored bytes pass through unchanged."""

    name: str
    tensor: LazyTensor
    scheme: Scheme
    places: Mapping[str, Place]
    copies: bool
    importance: Rows | None = None


@dataclass(frozen=True)
class Plan:
    """All there is to do. `folder` is False for a single file, whose only entry in `files` bears the target's name.

    `sources` hold the weights; `inputs` are all files that must not be overwritten; `provenance` is what the output says of its
    making, by GGUF key.
    """

    target: Path
    to: Target
    folder: bool
    files: Mapping[str, FileLayout]
    steps: tuple[Step, ...]
    assumptions: tuple[Assumption, ...]
    sources: tuple[Path, ...]
    inputs: tuple[Path, ...]
    architecture: str
    recipe: str
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all output files."""
        return sum(layout.nbytes for layout in self.files.values())

    @property
    def schemes(self) -> dict[str, int]:
        """{scheme name: number of tensors}, most first."""
        counts: dict[str, int] = {}
        for step in self.steps:
            counts[step.scheme.name] = counts.get(step.scheme.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def target_format(target: Path, to: str | None) -> Target:
    """The format by `--to`, else by the target's suffix (a folder is safetensors); UsageError for another."""
    if to is None:
        to = "gguf" if target.suffix.lower() == ".gguf" else "safetensors"
    if to not in ("gguf", "safetensors"):
        raise UsageError(f"--to {to}: smelt writes safetensors or gguf")
    if to == "safetensors" and target.suffix.lower() in (".gguf", ".safetensors", ".pth", ".bin"):
        raise UsageError(
            f"{target}: a safetensors target is a folder (weights, config, tokenizer): name one without a suffix"
        )
    return "gguf" if to == "gguf" else "safetensors"


def dtype_schemes(model: Model, to: Target, dtype: str) -> dict[str, Scheme]:
    """Every tensor at `dtype` ("source", "f32", "f16", "bf16"); GGUF holds vectors as F32."""
    if dtype not in ("source", "f32", "f16", "bf16"):
        raise UsageError(f"--dtype {dtype}: wanted source, f32, f16 or bf16")
    chosen: dict[str, Scheme] = {}
    refused = []
    for name, tensor in model.tensors.items():
        is_vector = len(tensor.shape) < 2
        wanted = tensor.dtype if dtype == "source" else DTYPES[dtype.upper()]
        if is_vector and to == "gguf":
            wanted = F32
        elif is_vector and dtype == "source" and to == "safetensors" and model.source == "gguf":
            wanted = model.norm_dtype
        allowed = (
            wanted in PLAIN
            or (to == "gguf" and wanted.is_block)
            or (to == "safetensors" and wanted.name in TORCH_NAMES)
        )
        if not allowed:
            refused.append(f"{name} ({wanted})")
        chosen[name] = cast_scheme(wanted)
    if refused:
        raise UsageError(
            f"{to} cannot hold {len(refused)} tensors at their stored dtype, first {refused[0]}: say --dtype f16, bf16 or f32"
        )
    return chosen


def make_plan(
    model: Model,
    target: Path,
    to: Target,
    schemes: Schemes,
    *,
    recipe: str,
    file_type: int | None = None,
    max_shard_nbytes: int = MAX_SHARD,
    without_tokenizer: bool = False,
    importance: Mapping[str, Rows] | None = None,
    provenance: Mapping[str, str | int] | None = None,
) -> Plan:
    """Place every tensor of `model` in `target`. No data is read. ModelError where a row does not divide into blocks."""
    family = family_by("name", model.architecture, str(target))
    named: list[tuple[str, LazyTensor, Scheme, str]] = []
    for canonical, tensor in model.tensors.items():
        name, laid_out = canonical, tensor
        if to == "gguf":
            name, laid_out, _ = to_gguf_tensor(family, tensor, model.config)
        named.append((name, laid_out, schemes[canonical], canonical))
    specs = _specs(named)
    if to == "gguf":
        if not without_tokenizer:
            tokenizer_of(model)
        code = FILE_TYPES.get(_common_dtype(specs).name, 1) if file_type is None else file_type
        n_vocab = int(model.config["vocab_size"])
        files = {target.name: gguf_file(model, family, [spec for _, spec in specs], code, n_vocab, provenance or {})}
        where = {spec.name: target.name for _, spec in specs}
    else:
        files, where = hugging_face_layout(model, [spec for _, spec in specs], _common_dtype(specs), max_shard_nbytes)
    steps = []
    for name, tensor, scheme, canonical in named:
        stored = scheme.stored(tensor.shape)
        places = {}
        for suffix, (shape, dtype) in stored.items():
            file = where[name + suffix]
            places[suffix] = Place(file, files[file].slots[name + suffix], dtype.row_nbytes(shape[-1] if shape else 1))
        copies = list(stored) == [""] and stored[""][1] == tensor.dtype
        column_importance = None if importance is None else importance.get(canonical)
        steps.append(Step(name, tensor, scheme, places, copies, column_importance))
    return Plan(
        target,
        to,
        to == "safetensors",
        files,
        tuple(steps),
        model.assumptions,
        model.files,
        (*model.files, *_beside(model)),
        model.architecture,
        recipe,
        model.notes + _identity_notes(model),
        provenance or {},
    )


def _beside(model: Model) -> tuple[Path, ...]:
    """The other files of a model that is a folder (params.json, the tokenizer): inputs as well, never to be overwritten."""
    if model.source == "gguf":
        return ()
    folder = model.files[0].parent
    return tuple(path for path in sorted(folder.iterdir()) if path.is_file() and ".gguf" not in path.suffixes)


def _specs(named: list[tuple[str, LazyTensor, Scheme, str]]) -> list[tuple[str, TensorSpec]]:
    """(canonical name, spec) of every stored tensor; ModelError lists every row that does not divide into blocks."""
    specs, bad = [], []
    for name, tensor, scheme, canonical in named:
        for suffix, (shape, dtype) in scheme.stored(tensor.shape).items():
            if shape and shape[-1] % dtype.block:
                bad.append(f"{name} ({shape[-1]} columns, {dtype} takes {dtype.block} at a time)")
            specs.append((canonical, TensorSpec(name + suffix, shape, dtype)))
    if bad:
        raise ModelError(
            f"{len(bad)} tensors do not divide into blocks: {', '.join(bad)}: choose another scheme for them"
        )
    return specs


def _common_dtype(specs: list[tuple[str, TensorSpec]]) -> DType:
    """The dtype of most bytes among matrices: what a config calls the model's dtype."""
    sizes: dict[DType, int] = {}
    for _, spec in specs:
        if len(spec.shape) > 1:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=lambda dtype: (sizes[dtype], dtype.name)) if sizes else F16


def _identity_notes(model: Model) -> tuple[str, ...]:
    """Facts about the source worth a line: weights at several dtypes, a vocabulary shorter than the embedding."""
    notes = []
    rows = int(model.config["vocab_size"])
    if model.tokenizer is not None and len(model.tokenizer.pieces) < rows:
        notes.append(
            f"the embedding has {rows} rows, the tokenizer {len(model.tokenizer.pieces)} pieces: padded in GGUF"
        )
    dtypes = {str(tensor.dtype) for tensor in model.tensors.values() if len(tensor.shape) > 1}
    if len(dtypes) > 1:
        notes.append(f"the source's matrices are {', '.join(sorted(dtypes))}")
    return tuple(notes)
