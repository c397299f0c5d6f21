"""A path -> Model, whatever it is: the format is told from bytes and folder contents, never from a name alone.

What is no format of smelt's own may be a plugin's container: a Hugging Face folder whose weights lie in another kind of file.

In a Hugging Face folder safetensors come before pytorch_model*.bin of the same model. A GGUF file that smelt made from the
other weights of a folder, by the sources that its `<file>.smelt.json` names, leaves the folder what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..formats.checkpoint import Checkpoint
from ..formats.gguf import open_gguf
from ..formats.pth import open_pth
from ..formats.safetensors import open_safetensors
from ..formats.sniff import is_saved_reference, sniff
from ..formats.torch_bin import is_torch_bin, open_torch_bin
from .containers import OWN, claiming_format, open_container, third_party_format
from .gguf import read_gguf_model
from .hugging_face import read_hugging_face_model
from .meta import read_meta
from .meta_shards import is_meta, shard_files
from .metaseq import read_metaseq
from .metaseq_parts import POLICY, is_metaseq, part_files
from .model import Model
from .options import OpenOptions
from .tokenizer_open import with_pre

_TORCH = {".bin": "bin", ".pt": "metaseq", ".pth": "meta"}


def open_model(path: Path, options: OpenOptions | None = None) -> Model:
    """Open a Meta folder, metaseq's .pt files, a Hugging Face folder, a .safetensors, .bin or .gguf file, or what a plugin
    reads. Reads headers only.

    InputError and its kin say in one line what is wrong with it and what to do next.
    """
    options = options or OpenOptions()
    kind, where = identify(path)
    if kind == "meta":
        model = read_meta(where, options)
    elif kind == "metaseq":
        model = read_metaseq(where, options)
    elif kind == "gguf":
        model = read_gguf_model(where, options)
    else:
        model = read_hugging_face_model(where, options, None if kind in OWN else _opener(kind))
    return model if options.pre is None else replace(model, tokenizer=with_pre(model.tokenizer, options.pre))


def _opener(kind: str) -> Callable[[Path], Checkpoint]:
    """What opens a plugin's container, whose checkpoint then bears the format's name."""
    format_ = third_party_format(kind)
    if format_ is None:
        raise InputError(f"{kind}: no format of that name is installed")
    return lambda path: replace(open_container(format_, path), format=kind)


def checkpoints(kind: str, where: Path) -> list[Checkpoint]:
    """The bare tensors of what `identify` found, whether smelt can map them or not; raises what the reader raises."""
    if kind == "meta":
        return [open_pth(file) for file in shard_files(where)]
    if kind == "metaseq":
        return [open_pth(file, POLICY, "model") for shards in part_files(where) for file in shards]
    openers = {"gguf": open_gguf, "bin": open_torch_bin, "safetensors": open_safetensors}
    return [(openers[kind] if kind in openers else _opener(kind))(where)]


def identify(path: Path) -> tuple[str, Path]:
    """-> (a name of `OWN` or of a plugin's format, the folder or file to open); InputError says what else it is."""
    if not path.exists():
        hint = ""
        if len(path.parts) == 2 and not path.is_absolute():
            hint = f"; if it is a model of the Hugging Face hub: hf download {path} --local-dir {path.name}"
        raise InputError(f"{path}: no such file or folder{hint}")
    return _identify_folder(path) if path.is_dir() else _identify_file(path)


def _identify_folder(folder: Path) -> tuple[str, Path]:
    found: list[tuple[str, Path]] = []
    if is_meta(folder):
        found.append(("meta", folder))
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists():
        found.append(("safetensors", folder))
    elif is_torch_bin(folder):
        found.append(("bin", folder))
    elif not found and is_metaseq(folder):
        found.append(("metaseq", folder))
    ggufs = sorted(folder.glob("*.gguf"))
    first_parts = [file for file in ggufs if "-of-" not in file.stem or file.stem.split("-of-")[0].endswith("-00001")]
    found += [("gguf", file) for file in first_parts if not (found and _made_here(file))]
    if len(found) > 1:
        names = " and ".join(f"{kind} ({where.name})" for kind, where in found)
        raise InputError(f"{folder}: holds more than one model: {names}: name the one you mean, or move the other away")
    if not found and (claimed := claiming_format(folder)) is not None:
        return claimed.name, folder
    if not found:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{folder}: no consolidated.NN.pth, *.safetensors, pytorch_model.bin or *.gguf in it, but {names}: is it the "
            "model's folder?"
        )
    return found[0]


def _made_here(file: Path) -> bool:
    """True for a GGUF file whose manifest names files beside it, of the sizes they have, as its sources."""
    try:
        told = json.loads(file.with_name(f"{file.name}.smelt.json").read_bytes())
        sources = {source["file"]: source["bytes"] for source in told["sources"]}
        return bool(sources) and all((file.parent / name).stat().st_size == sources[name] for name in sources)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _identify_file(path: Path) -> tuple[str, Path]:
    kind = sniff(path)
    if kind == "pth" and path.suffix in _TORCH:
        return _TORCH[path.suffix], path.parent if path.suffix == ".pth" else path
    if kind == "safetensors" and is_saved_reference(path):
        raise InputError(
            f"{path}: is no model but a reference that smelt validate --save-reference wrote: give it as the REFERENCE of "
            "smelt validate"
        )
    if kind in ("gguf", "safetensors"):
        return kind, path
    if (claimed := claiming_format(path)) is not None:
        return claimed.name, path
    if kind == "pth":
        return "meta", path.parent
    meanings = {
        "log-probabilities": "is no model but what llama-perplexity recorded of one (--kl-divergence-base): give it as the "
        "REFERENCE of smelt validate",
        "lfs-pointer": "is a git-lfs pointer, not the file itself: run git lfs pull, or download it again",
        "html": "is a web page, not a model: the download was refused or redirected; download it again",
        "empty": "is empty: the download is incomplete",
        "legacy-pth": "is a pickle of torch older than 1.6: re-save it with torch.save in a machine you trust",
    }
    raise InputError(f"{path}: {meanings.get(kind, 'is none of GGUF, safetensors or a torch zip file')}")
