"""Opens a saved reference (baseline.py): nothing in it is believed that is not checked, and no hidden state is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..convert.model import LazyTensor, Model, Packed
from ..convert.tokenizer import Tokenizer
from ..dtypes import DTYPES
from ..errors import FormatError, ModelError, SmeltError, quoted
from ..formats.checkpoint import Bytes, StoredTensor
from ..formats.safetensors_read import parse_json, read_file
from .baseline import FACTS, HEAD, HIDDEN, IDS, NLL, TOKENIZER_FACTS, VERSION, Baseline, SavedText
from .baseline_write import stored_spec
from .bootstrap import Interval
from .protocols import Protocol, protocol
from .report import NoiseFloor

Kind = TypeVar("Kind")


def open_baseline(path: Path) -> Baseline:
    """A file that `smelt validate --save-reference` wrote. FormatError where it is not, or is damaged."""
    stored, metadata = read_file(path)
    if FACTS not in metadata:
        raise FormatError(f"{path}: has no {FACTS} in its header, so it is no reference that smelt saved")
    facts = parse_json(path, metadata[FACTS].encode(), floats=True)
    if facts.get("version") != VERSION:
        raise FormatError(
            f"{path}: its version is {quoted(facts.get('version'))}, this smelt reads {VERSION}: save the reference again"
        )
    for name, dtype in ((HIDDEN, "F32"), (NLL, "F64")):
        if (
            name not in stored
            or stored[name].dtype.name != dtype
            or len(stored[name].shape) != (2 if name == HIDDEN else 1)
        ):
            raise FormatError(f"{path}: its tensor {name} is missing or not {dtype}: save it again")
    model = _model(path, facts, stored)
    found = Baseline(
        path,
        model,
        _protocol(path, _take(path, facts, "protocol", dict)),
        tuple(_text(path, index, text, stored) for index, text in enumerate(_take(path, facts, "texts", list))),
        _noise_floor(path, facts.get("noise_floor")),
        _take(path, _take(path, facts, "reference", dict), "path", str),
        _take(path, facts, "smelt", str),
        _optional(path, _take(path, facts, "model", dict), "layer_returns", int),
        stored,
    )
    if not found.texts:
        raise FormatError(f"{path}: holds no text: save it again")
    return found


def _take(path: Path, facts: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind:
    value = facts.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{path}: its {key} is {quoted(value)}, wanted {kind.__name__}: save the reference again")
    return value


def _optional(path: Path, facts: Mapping[str, Any], key: str, kind: type[Kind]) -> Kind | None:
    return None if facts.get(key) is None else _take(path, facts, key, kind)


def _protocol(path: Path, facts: Mapping[str, Any]) -> Protocol:
    name, n_ctx, stride = (
        _take(path, facts, "name", str),
        *(_take(path, facts, key, int) for key in ("n_ctx", "stride")),
    )
    try:
        found = protocol(name, n_ctx, stride if name == "strided" else None)
    except SmeltError as error:
        raise FormatError(f"{path}: its protocol cannot be: {error}") from None
    return found


def _text(path: Path, index: int, facts: object, stored: Mapping[str, StoredTensor]) -> SavedText:
    if not isinstance(facts, dict):
        raise FormatError(f"{path}: text {index} is {quoted(facts)}, wanted an object: save the reference again")
    tensor = stored.get(f"{IDS}{index}")
    if tensor is None or tensor.dtype.name != "I32" or len(tensor.shape) != 1:
        raise FormatError(f"{path}: {IDS}{index}, the token ids of text {index}, is missing or not I32: save it again")
    return SavedText(
        _take(path, facts, "name", str),
        tuple(tensor.read(0, 1).view("<i4")[0].tolist()),
        _take(path, facts, "chunks", int),
        _optional(path, facts, "text_sha256", str),
        _take(path, facts, "token_ids_sha256", str),
    )


def _noise_floor(path: Path, facts: object) -> NoiseFloor | None:
    if facts is None:
        return None
    if not isinstance(facts, dict):
        raise FormatError(f"{path}: its noise_floor is {quoted(facts)}, wanted an object: save the reference again")
    kld, top1 = (_interval(path, _take(path, facts, key, dict)) for key in ("kld", "top1_agreement"))
    return NoiseFloor(kld, top1, _take(path, facts, "chunks", int))


def _interval(path: Path, facts: Mapping[str, Any]) -> Interval:
    return Interval(_take(path, facts, "mean", float), *(_optional(path, facts, key, float) for key in ("low", "high")))


def _model(path: Path, facts: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> Model:
    """The outline: names, shapes and types of all tensors; only what the head takes can be read."""
    told = _take(path, facts, "model", dict)
    tensors = {}
    for name, entry in _take(path, told, "tensors", dict).items():
        tensors[name] = _outlined(path, name, entry, stored)
    config = _take(path, told, "config", dict)
    architecture, source = (_take(path, told, key, str) for key in ("architecture", "source"))
    return Model(architecture, config, _tokenizer(path, facts.get("tokenizer")), tensors, source, (path,))


def _outlined(path: Path, name: str, entry: object, stored: Mapping[str, StoredTensor]) -> LazyTensor:
    """[shape, dtype] or [shape, dtype, scheme, bytes] -> a tensor that can be read where the file holds it."""
    shape, dtype, *packed = entry if isinstance(entry, list) and len(entry) in (2, 4) else (None, None)
    if (
        not isinstance(shape, list)
        or not all(type(n) is int and n >= 0 for n in shape)
        or not isinstance(dtype, str)
        or dtype not in DTYPES
        or [type(value) for value in packed] not in ([], [str, int])
    ):
        raise FormatError(f"{path}: its tensor {quoted(name)} is {quoted(entry)}, wanted [shape, type]")
    tensor = LazyTensor(
        name, tuple(shape), DTYPES[dtype], _refuse(path, name), Packed(packed[0], packed[1]) if packed else None
    )
    held = stored.get(f"{HEAD}{name}")
    if held is None:
        return tensor
    wanted = stored_spec(name, tensor)
    if (held.shape, held.dtype) != (wanted.shape, wanted.dtype):
        raise FormatError(
            f"{path}: {held.name} is {held.dtype} {list(held.shape)}, wanted {wanted.dtype} {list(wanted.shape)}: save it again"
        )
    return replace(tensor, read=held.read)


def _refuse(path: Path, name: str) -> Callable[[int, int], Bytes]:
    def read(_start: int, _stop: int) -> Bytes:
        raise ModelError(f"{path}: {name}: a saved reference keeps its head alone: give the model itself")

    return read


def _tokenizer(path: Path, facts: object) -> Tokenizer | None:
    """A vocabulary without pieces: its special tokens are what candidates' are held against."""
    if facts is None:
        return None
    if not isinstance(facts, dict) or set(facts) != set(TOKENIZER_FACTS):
        raise FormatError(f"{path}: its tokenizer is {quoted(facts)}, wanted {', '.join(TOKENIZER_FACTS)}")
    bos, eos, unk, pad = (_optional(path, facts, key, int) for key in ("bos_id", "eos_id", "unk_id", "pad_id"))
    return Tokenizer(
        _take(path, facts, "kind", str),
        (),
        bos_id=bos,
        eos_id=eos,
        unk_id=unk,
        pad_id=pad,
        add_bos=_take(path, facts, "add_bos", bool),
        add_eos=_take(path, facts, "add_eos", bool),
        chat_template=_optional(path, facts, "chat_template", str),
    )
