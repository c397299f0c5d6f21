"""Model -> a Hugging Face folder: safetensors or a third party's container, config.json, the side files.

    model.safetensors | model-0000N-of-0000K.safetensors + model.safetensors.index.json
    config.json in transformers' older spelling, which both generations open

Canonical names and layouts are Hugging Face's, so tensors pass through as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from ..dtypes import DType
from ..errors import ModelError, PluginError, UsageError
from ..formats.checkpoint import FileLayout, TensorSpec, literal
from ..formats.container import Format, check_layout
from ..formats.safetensors import index_json, safetensors_layout, shard_plan
from .architecture import Family
from .assemble import Laid, lay_out
from .carried import came_along, hugging_face_side_files
from .made_files import made_words
from .model import Model
from .plugins import plugin_call
from .writer import Output, Placed, Writer, common_dtype, holds_torch, whole

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
MAX_SHARD = 5_000_000_000  # bytes

Weights = Callable[[Sequence[TensorSpec], Mapping[str, str]], Mapping[str, FileLayout]]


def config_json(model: Model, dtype: DType) -> bytes:
    """config.json for `model` with matrices of `dtype`, readable by transformers 4.46 and later."""
    config = {**model.config, "torch_dtype": TORCH_NAMES.get(dtype.name, "float32")}
    return (json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def hugging_face_layout(model: Model, specs: Sequence[TensorSpec], weights: Weights) -> dict[str, FileLayout]:
    """{file name: layout} of the folder that holds `specs` and the model's facts.

    weights  (specs, a few strings to keep) -> the files that hold them: safetensors, or a third party's container
    """
    if "max_position_embeddings" not in model.config:
        raise ModelError(
            f"{model.files[0].parent}: the context length is in none of its files: say it with --context-length "
            "(LLaMA 1 was trained at 2048, Llama 2 at 4096)"
        )
    side_files = dict(sorted(hugging_face_side_files(model).items()))
    files = dict(weights(specs, {"format": "pt", **model.kept, **made_words(side_files, came_along(model))}))
    beside = {"config.json": config_json(model, common_dtype(specs)), **side_files}
    if taken := sorted(set(files) & set(beside)):
        raise PluginError(
            f"{taken[0]}: the container's layout has a file of this name, which smelt writes beside the weights"
        )
    return files | {name: literal(content) for name, content in beside.items()}


def _safetensors(specs: Sequence[TensorSpec], words: Mapping[str, str], max_shard_nbytes: int) -> dict[str, FileLayout]:
    shards = shard_plan(specs, max_shard_nbytes)
    files = {name: safetensors_layout(part, words) for name, part in shards}
    index = {"model.safetensors.index.json": literal(index_json(shards))} if len(shards) > 1 else {}
    return {**files, **index}


def _lay_out(family: Family, model: Model) -> list[Laid]:
    return lay_out(family, "canonical", model.tensors, model.config)


def _placed(model: Model, _family: Family, specs: Sequence[TensorSpec], output: Output) -> Placed:
    limit = MAX_SHARD if output.max_shard_nbytes is None else output.max_shard_nbytes
    files = hugging_face_layout(model, specs, lambda parts, words: _safetensors(parts, words, limit))
    return Placed(files, whole(specs, files))


SAFETENSORS_WRITER = Writer("safetensors", holds_torch, _lay_out, _placed)


def container_writer(format_: Format) -> Writer:
    """The writer of a third party's container: a folder as safetensors has it, the weights in that container."""

    def placed(model: Model, _family: Family, specs: Sequence[TensorSpec], _output: Output) -> Placed:
        layout = format_.layout
        if layout is None:
            raise UsageError(f"--to {format_.name}: its plugin only reads this format: choose another")

        def weights(parts: Sequence[TensorSpec], words: Mapping[str, str]) -> Mapping[str, FileLayout]:
            found = plugin_call("smelt.formats", format_.name, "lays out a target", lambda: layout(parts, words))
            check_layout(format_, parts, found)
            return found

        files = hugging_face_layout(model, specs, weights)
        return Placed(files, whole(specs, files))

    return Writer(format_.name, holds_torch, _lay_out, placed)
