"""A plan places every byte of every output file before the first tensor is read.

    Model + {canonical name: Scheme}  ->  Plan(files, steps)

Each step is one logical weight: where it is read, how it is encoded, and the slots its stored tensors fill. Slots are
disjoint, so steps (and row ranges of one step) may run in any order and at once; sizes are known, so a dry run tells all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..dtypes import DTYPES, F16, F32, DType, Shape, matrix_shape
from ..errors import ModelError, UsageError
from ..formats.checkpoint import FileLayout, TensorSpec
from ..formats.gguf import GGUFValue, gguf_layout, gguf_shards
from ..kernels.scheme import Rows, Scheme, cast_scheme
from .architecture import Family, family_by
from .assemble import Laid, lay_out
from .digests import Origin, numbered
from .gguf import FILE_TYPES, PLAIN, gguf_metadata, tokenizer_of
from .hugging_face import TORCH_NAMES, hugging_face_layout
from .meta_params import published_shards
from .meta_write import meta_layout, meta_tensors
from .model import Assumption, LazyTensor, Model
from .places import Place
from .tokenizer_gguf import vocabulary_notes

Target = Literal["meta", "safetensors", "gguf"]
Schemes = Mapping[str, Scheme]
Places = Mapping[str, tuple[Place, ...]]

MAX_SHARD = 5_000_000_000


@dataclass(frozen=True)
class Step:
    """One logical weight; `places` by the suffix of its stored tensors. `copies`: the stored bytes pass through unchanged.

    `origin` is None for what the format computes for itself, and for a weight that is written a second time.
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme
    places: Places
    copies: bool
    importance: Rows | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Plan:
    """All there is to do. `folder` is False for a single file, whose only entry in `files` bears the target's name.

    `sources` hold the weights; `inputs` are all files that must not be overwritten; `provenance` is what the output says of its
    making, by GGUF key; `pth` names the .pth files with their tensors, whose checksums the run fills in.
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
    pth: Mapping[str, tuple[TensorSpec, ...]] = field(default_factory=dict)

    @property
    def manifest_name(self) -> str:
        """The file beside or among the others that says how they were made."""
        return "smelt.json" if self.folder else f"{self.target.name}.smelt.json"

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
    if to not in ("meta", "gguf", "safetensors"):
        raise UsageError(f"--to {to}: smelt writes meta, safetensors or gguf")
    if to != "gguf" and target.suffix.lower() in (".gguf", ".safetensors", ".pth", ".bin"):
        raise UsageError(f"{target}: a {to} target is a folder (weights, facts, tokenizer): name one without a suffix")
    return "gguf" if to == "gguf" else "meta" if to == "meta" else "safetensors"


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
        elif is_vector and dtype == "source" and model.source == "gguf":
            wanted = model.norm_dtype
        allowed = wanted in PLAIN or (to == "gguf" and wanted.is_block) or (to != "gguf" and wanted.name in TORCH_NAMES)
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
    max_shard_nbytes: int | None = None,
    n_shards: int | None = None,
    without_tokenizer: bool = False,
    importance: Mapping[str, Rows] | None = None,
    provenance: Mapping[str, str | int] | None = None,
) -> Plan:
    """Place every tensor of `model` in `target`. No data is read. ModelError where a row does not divide into blocks.

    max_shard_nbytes  bytes of tensors in one file: MAX_SHARD for safetensors; a GGUF is one file unless it is given
    n_shards          of a Meta folder: those the model was published in unless given
    """
    if n_shards is not None and to != "meta":
        raise UsageError(f"--shards divides Meta's folders, the target is {to}: say --to meta, or --max-shard-size")
    family = family_by("name", model.architecture, str(target))
    laid = _laid_out(family, model, to)
    specs = _specs(laid, schemes)
    origins = _origins(family, model, to)
    pth: Mapping[str, tuple[TensorSpec, ...]] = {}
    if to == "meta":
        folder = meta_layout(model, family, specs, published_shards(model) if n_shards is None else n_shards)
        files, pth = folder.files, folder.pth
        places: Places = folder.places
    elif to == "gguf":
        if not without_tokenizer:
            tokenizer_of(model)
        code = FILE_TYPES.get(_common_dtype(specs).name, 1) if file_type is None else file_type
        n_vocab = int(model.config["vocab_size"])
        metadata = gguf_metadata(model, family, specs, code, n_vocab, provenance or {})
        files = _gguf_files(target, specs, metadata, max_shard_nbytes)
        places = _whole(specs, files)
    else:
        files = hugging_face_layout(model, specs, _common_dtype(specs), max_shard_nbytes or MAX_SHARD)
        places = _whole(specs, files)
    return Plan(
        target,
        to,
        to != "gguf" or max_shard_nbytes is not None,
        files,
        tuple(step for stored in laid for step in _steps(stored, schemes, places, importance or {}, origins)),
        model.assumptions,
        model.files,
        (*model.files, *_beside(model)),
        model.architecture,
        recipe,
        model.notes + _identity_notes(model) + _gguf_notes(family, to),
        provenance or {},
        pth,
    )


def _laid_out(family: Family, model: Model, to: Target) -> list[Laid]:
    """Every tensor that is stored, under its name and in its layout there."""
    if to == "meta":
        return meta_tensors(family, model)
    if to == "gguf":
        return [*_derived(family, model), *lay_out(family, "gguf", model.tensors, model.config)]
    return lay_out(family, "canonical", model.tensors, model.config)


def _derived(family: Family, model: Model) -> list[Laid]:
    """What GGUF holds as a tensor though it follows from the config."""
    found = []
    for derived in family.derived:
        values = derived.values(model.config)
        if values is not None:
            found.append(Laid(derived.gguf, values.shape, (_held(derived.gguf, values),)))
    return found


def _held(name: str, values: Rows) -> LazyTensor:
    """A vector that is in memory, as a tensor."""
    raw = np.ascontiguousarray(values, "<f4").view(np.uint8)[None]
    return LazyTensor(name, values.shape, F32, lambda start, stop: raw[start:stop])


def _gguf_files(
    target: Path, specs: list[TensorSpec], metadata: Mapping[str, GGUFValue], max_shard_nbytes: int | None
) -> dict[str, FileLayout]:
    """One file by the target's name, or the parts of a folder; UsageError for a folder that is named like a file."""
    if max_shard_nbytes is None:
        return {target.name: gguf_layout(specs, metadata)}
    if target.suffix.lower() == ".gguf":
        raise UsageError(
            f"{target}: --max-shard-size makes a folder of GGUF parts: name one without a suffix and say --to gguf"
        )
    return dict(gguf_shards(specs, metadata, max_shard_nbytes, target.name))


def _whole(specs: list[TensorSpec], files: Mapping[str, FileLayout]) -> Places:
    """Each stored tensor whole in the file that has a slot for it."""
    where = {name: (file, slot) for file, layout in files.items() for name, slot in layout.slots.items()}
    places = {}
    for spec in specs:
        rows, columns = matrix_shape(spec.shape)
        places[spec.name] = (Place(*where[spec.name], spec.dtype.row_nbytes(columns), 0, rows),)
    return places


def _origins(family: Family, model: Model, to: Target) -> dict[str, Origin]:
    """{canonical name: its origin}; whoever takes one takes it out, so that a weight written twice is counted once."""
    tensors = {name: numbered(tensor) for name, tensor in model.tensors.items()}
    laid = _laid_out(family, replace(model, tensors=tensors), to)
    numbers = {part.name: part for stored in laid for part in stored.parts}
    return {
        name: Origin(tensor, numbers[name] if len(tensor.shape) == 2 else None)
        for name, tensor in model.tensors.items()
    }


def _steps(
    laid: Laid, schemes: Schemes, places: Places, importance: Mapping[str, Rows], origins: dict[str, Origin]
) -> list[Step]:
    """A step for each part of a stored tensor; parts lie one after another."""
    steps, before = [], 0
    for part in laid.parts:
        scheme = _scheme(part, schemes)
        stored = scheme.stored(part.shape)
        copies = list(stored) == [""] and stored[""][1] == part.dtype
        inside = {suffix: places[laid.name + suffix] for suffix in stored}
        if len(laid.parts) > 1:
            ((shape, dtype),) = stored.values()
            inside = {"": tuple(_part_place(place, before, shape, dtype) for place in inside[""])}
            before += dtype.tensor_nbytes(shape)
        origin = origins.pop(part.name, None)
        steps.append(Step(laid.name, part, scheme, inside, copies, importance.get(part.name), origin))
    return steps


def _part_place(whole: Place, before: int, shape: Shape, dtype: DType) -> Place:
    """Where a part goes that begins `before` bytes into a stored tensor."""
    rows, columns = matrix_shape(shape)
    return Place(whole.file, whole.offset + before, dtype.row_nbytes(columns), 0, rows)


def _scheme(part: LazyTensor, schemes: Schemes) -> Scheme:
    """A tensor's scheme; one that a format computes for itself (GGUF's rope_freqs) is stored as it is."""
    return schemes[part.name] if part.name in schemes else cast_scheme(part.dtype)


def _beside(model: Model) -> tuple[Path, ...]:
    """The other files of a model that is a folder (params.json, the tokenizer): inputs as well, never to be overwritten."""
    if model.source == "gguf":
        return ()
    folder = model.files[0].parent
    return tuple(path for path in sorted(folder.iterdir()) if path.is_file() and ".gguf" not in path.suffixes)


def _specs(laid: list[Laid], schemes: Schemes) -> list[TensorSpec]:
    """Every stored tensor; ModelError lists every row that does not divide into blocks."""
    specs, bad = [], []
    for stored in laid:
        chosen = {_scheme(part, schemes).name for part in stored.parts}
        if len(chosen) > 1:
            raise ModelError(f"{stored.name}: its parts are to be {' and '.join(sorted(chosen))}: choose one for all")
        for suffix, (shape, dtype) in _scheme(stored.parts[0], schemes).stored(stored.shape).items():
            if shape and shape[-1] % dtype.block:
                bad.append(f"{stored.name} ({shape[-1]} columns, {dtype} takes {dtype.block} at a time)")
            specs.append(TensorSpec(stored.name + suffix, shape, dtype))
    if bad:
        raise ModelError(
            f"{len(bad)} tensors do not divide into blocks: {', '.join(bad)}: choose another scheme for them"
        )
    return specs


def _common_dtype(specs: list[TensorSpec]) -> DType:
    """The dtype of most bytes among matrices: what a config calls the model's dtype."""
    sizes: dict[DType, int] = {}
    for spec in specs:
        if len(spec.shape) > 1:
            sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
    return max(sizes, key=lambda dtype: (sizes[dtype], dtype.name)) if sizes else F16


def _gguf_notes(family: Family, to: Target) -> tuple[str, ...]:
    return (family.gguf_note,) if to == "gguf" and family.gguf_note else ()


def _identity_notes(model: Model) -> tuple[str, ...]:
    """Facts about the source worth a line: weights at several dtypes, a vocabulary shorter than the embedding."""
    notes = []
    rows = int(model.config["vocab_size"])
    if model.tokenizer is not None and len(model.tokenizer.pieces) < rows:
        notes.append(
            f"the embedding has {rows} rows, the tokenizer {len(model.tokenizer.pieces)} pieces: padded in GGUF"
        )
    if model.tokenizer is not None:
        notes += vocabulary_notes(model.tokenizer)
    dtypes = {str(tensor.dtype) for tensor in model.tensors.values() if len(tensor.shape) > 1}
    if len(dtypes) > 1:
        notes.append(f"the source's matrices are {', '.join(sorted(dtypes))}")
    return tuple(notes)
