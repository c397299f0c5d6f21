"""Model -> GGUF: one file, or a folder of parts where a size is given; keys out of the config, tensors by GGUF's names.

Vectors are F32. What follows from the config and yet is a tensor (divisors of rotary frequencies) is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..dtypes import F32, DType
from ..errors import UsageError
from ..formats.checkpoint import FileLayout, TensorSpec
from ..formats.gguf import GGUFValue, gguf_layout, gguf_shards
from .architecture import Family
from .assemble import Laid, lay_out
from .gguf import FILE_TYPES, PLAIN, gguf_metadata, tokenizer_of
from .model import Model
from .rope_gguf import rope_notes
from .writer import Output, Placed, Writer, common_dtype, held, whole


def _holds(dtype: DType) -> bool:
    return dtype in PLAIN or dtype.is_block


def _lay_out(family: Family, model: Model) -> list[Laid]:
    found = [(derived.gguf, derived.values(model.config)) for derived in family.derived]
    computed = [held(name, values) for name, values in found if values is not None]
    return [*computed, *lay_out(family, "gguf", model.tensors, model.config)]


def _place(model: Model, family: Family, specs: Sequence[TensorSpec], output: Output) -> Placed:
    if not output.without_tokenizer:
        tokenizer_of(model)
    code = FILE_TYPES.get(common_dtype(specs).name, 1) if output.file_type is None else output.file_type
    n_vocab = int(model.config["vocab_size"])
    metadata = gguf_metadata(model, family, list(specs), code, n_vocab, output.provenance)
    files = _files(output.target, specs, metadata, output.max_shard_nbytes)
    return Placed(files, whole(specs, files))


def _files(
    target: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, GGUFValue], max_shard_nbytes: int | None
) -> dict[str, FileLayout]:
    """One file by the target's name, or the parts of a folder; UsageError for a folder that is named like a file."""
    if max_shard_nbytes is None:
        return {target.name: gguf_layout(specs, metadata)}
    if target.suffix.lower() == ".gguf":
        raise UsageError(
            f"{target}: --max-shard-size makes a folder of GGUF parts: name one without a suffix and say --to gguf"
        )
    return dict(gguf_shards(specs, metadata, max_shard_nbytes, target.name))


def _notes(family: Family, model: Model) -> tuple[str, ...]:
    return (*((family.gguf_note,) if family.gguf_note else ()), *rope_notes(model.config))


GGUF_WRITER = Writer("gguf", _holds, _lay_out, _place, vectors=F32, notes=_notes)
