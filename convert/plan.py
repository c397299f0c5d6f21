"""A plan places every byte of every output file before the first tensor is read.

    Model + {canonical name: Scheme}  ->  Plan(files, steps)

Each step is one logical weight: where it is read, how it is encoded, and the slots its stored tensors fill. Slots are
disjoint, so steps (and row ranges of one step) may run in any order and at once; sizes are known, so a dry run tells all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path

from ..dtypes import DTYPES, F32, DType, Shape, matrix_shape
from ..errors import ModelError, UsageError
from ..formats.checkpoint import FileLayout, TensorSpec
from ..formats.pth_write import TorchFile
from ..kernels.scheme import Rows, Scheme, cast_scheme
from .architecture import KEPT_ROLES, ROUTER, Family, family_by, match_names
from .assemble import Laid
from .digests import Origin, numbered
from .model import Assumption, ExpectedSum, LazyTensor, Model
from .places import Place
from .tokenizer_gguf import vocabulary_notes
from .writer import Output, Places, Writer
from .writers import writer_of

Schemes = Mapping[str, Scheme]


@dataclass(frozen=True)
class Step:
    """One logical weight; `places` by the suffix of its stored tensors. `copies`: the stored bytes pass through unchanged.

    `origin` is None for what the format computes for itself, and for a weight that is written a second time. `before` counts
    the elements that lie before it in the stored tensor, whose rows have `columns`.
    """

    name: str
    tensor: LazyTensor
    scheme: Scheme
    places: Places
    copies: bool
    importance: Rows | None = None
    origin: Origin | None = None
    before: int = 0
    columns: int = 1

    def in_stored(self, row: int, column: int) -> tuple[int, int]:
        """Where a row and column of the weight lie in the stored tensor."""
        return divmod(self.before + row * self.tensor.matrix_shape[1] + column, self.columns)


@dataclass(frozen=True)
class Plan:
    """All there is to do. `folder` is False for a single file, whose only entry in `files` bears the target's name.

    `sources` hold the weights; `inputs` are all files that must not be overwritten; `provenance` is what the output says of its
    making, by GGUF key; `torch_files` are the .pth or .pt files by name, whose checksums the run fills in; `routers` are the
    stored tensors that choose experts, `expected_sum` is what all values must add up to.
    """

    target: Path
    to: str
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
    torch_files: Mapping[str, TorchFile] = field(default_factory=dict)
    routers: frozenset[str] = frozenset()
    expected_sum: ExpectedSum | None = None

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


def dtype_schemes(model: Model, to: str, dtype: str) -> dict[str, Scheme]:
    """Every tensor at `dtype` ("source", "f32", "f16", "bf16"). GGUF holds vectors as F32, and what llama.cpp never rounds."""
    if dtype not in ("source", "f32", "f16", "bf16"):
        raise UsageError(f"--dtype {dtype}: wanted source, f32, f16 or bf16")
    writer = writer_of(to)
    kept = frozenset() if dtype == "source" or writer.vectors is None else _with_roles(model, KEPT_ROLES)
    chosen: dict[str, Scheme] = {}
    refused = []
    for name, tensor in model.tensors.items():
        is_vector = len(tensor.shape) < 2
        wanted = tensor.dtype if dtype == "source" else DTYPES[dtype.upper()]
        if (name in kept and wanted != tensor.dtype) or (is_vector and writer.vectors is not None):
            wanted = writer.vectors or F32
        elif is_vector and dtype == "source" and model.source == "gguf":
            wanted = model.norm_dtype
        if not writer.holds(wanted):
            refused.append(f"{name} ({wanted})")
        chosen[name] = cast_scheme(wanted)
    if refused:
        raise UsageError(
            f"{to} cannot hold {len(refused)} tensors at their stored dtype, first {refused[0]}: say --dtype f16, bf16 or f32"
        )
    return chosen


def _with_roles(model: Model, roles: tuple[str, ...]) -> frozenset[str]:
    """Canonical names of the tensors that have one of the roles."""
    family = family_by("name", model.architecture, str(model.files[0]))
    matches = match_names(family, "canonical", model.tensors, family.name)
    return frozenset(name for name, match in matches.items() if match.row.role in roles)


def make_plan(
    model: Model,
    target: Path,
    to: str,
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
    if max_shard_nbytes is not None and to not in ("safetensors", "gguf"):
        raise UsageError(f"--max-shard-size divides safetensors and GGUF, the target is {to}: leave it out")
    if n_shards is not None and to != "meta":
        raise UsageError(f"--shards divides Meta's folders, the target is {to}: say --to meta, or --max-shard-size")
    family, writer = family_by("name", model.architecture, str(target)), writer_of(to)
    laid = writer.lay_out(family, model)
    specs = _specs(laid, schemes)
    output = Output(target, file_type, max_shard_nbytes, n_shards, without_tokenizer, provenance or {})
    placed = writer.place(model, family, specs, output)
    origins, routers = _origins(family, model, writer), _with_roles(model, (ROUTER,))
    return Plan(
        target,
        to,
        to != "gguf" or max_shard_nbytes is not None,
        placed.files,
        tuple(step for stored in laid for step in _steps(stored, schemes, placed.places, importance or {}, origins)),
        model.assumptions,
        model.files,
        (*model.files, *_beside(model)),
        model.architecture,
        recipe,
        model.notes + _identity_notes(model) + writer.notes(family, model),
        provenance or {},
        placed.torch_files,
        frozenset(stored.name for stored in laid if any(part.name in routers for part in stored.parts)),
        model.expected_sum,
    )


def _origins(family: Family, model: Model, writer: Writer) -> dict[str, Origin]:
    """{canonical name: its origin}; whoever takes one takes it out, so that a weight written twice is counted once."""
    tensors = {name: numbered(tensor) for name, tensor in model.tensors.items()}
    laid = writer.lay_out(family, replace(model, tensors=tensors))
    numbers = {part.name: part for stored in laid for part in stored.parts}
    return {
        name: Origin(tensor, numbers[name] if len(tensor.shape) == 2 else None)
        for name, tensor in model.tensors.items()
    }


def _steps(
    laid: Laid, schemes: Schemes, places: Places, importance: Mapping[str, Rows], origins: dict[str, Origin]
) -> list[Step]:
    """A step for each part of a stored tensor; parts lie one after another."""
    steps, before, elements = [], 0, 0
    for part in laid.parts:
        scheme = _scheme(part, schemes)
        stored = scheme.stored(part.shape)
        copies = scheme is cast_scheme(part.dtype)
        inside = {suffix: places[laid.name + suffix] for suffix in stored}
        if len(laid.parts) > 1:
            ((shape, dtype),) = stored.values()
            inside = {"": tuple(_part_place(place, before, shape, dtype) for place in inside[""])}
            before += dtype.tensor_nbytes(shape)
        origin, known = origins.pop(part.name, None), importance.get(part.name)
        columns = matrix_shape(laid.shape)[1]
        steps.append(Step(laid.name, part, scheme, inside, copies, known, origin, elements, columns))
        elements += prod(part.shape)
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
