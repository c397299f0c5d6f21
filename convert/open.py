"""A path -> Model, whatever it is: the format is told from bytes and folder contents, never from a name alone.

In a Hugging Face folder safetensors come before pytorch_model*.bin of the same model. A GGUF file that smelt made from the
other weights of a folder, by the sources that its `<file>.smelt.json` names, leaves the folder what it was.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..errors import InputError
from ..formats.sniff import sniff
from ..formats.torch_bin import is_torch_bin
from .gguf import read_gguf_model
from .hugging_face import read_hugging_face_model
from .meta import read_meta
from .meta_shards import is_meta
from .metaseq import read_metaseq
from .metaseq_parts import is_metaseq
from .model import Model
from .options import OpenOptions
from .tokenizer_open import with_pre


def open_model(path: Path, options: OpenOptions | None = None) -> Model:
    """Open a Meta folder, metaseq's .pt files, a Hugging Face folder, a .safetensors, .bin or .gguf file. Reads headers only.

    InputError and its kin say in one line what is wrong with it and what to do next.
    """
    options = options or OpenOptions()
    kind, where = identify(path)
    if kind == "meta":
        model = read_meta(where, options)
    elif kind == "metaseq":
        model = read_metaseq(where, options)
    elif kind in ("safetensors", "bin"):
        model = read_hugging_face_model(where, options)
    else:
        model = read_gguf_model(where, options)
    return model if options.pre is None else replace(model, tokenizer=with_pre(model.tokenizer, options.pre))


def identify(path: Path) -> tuple[str, Path]:
    """-> ("meta" | "metaseq" | "safetensors" | "bin" | "gguf", the folder or file to open); InputError says what else it is."""
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
    if kind == "pth":
        return {".bin": ("bin", path), ".pt": ("metaseq", path)}.get(path.suffix, ("meta", path.parent))
    if kind in ("gguf", "safetensors"):
        return kind, path
    meanings = {
        "lfs-pointer": "is a git-lfs pointer, not the file itself: run git lfs pull, or download it again",
        "html": "is a web page, not a model: the download was refused or redirected; download it again",
        "empty": "is empty: the download is incomplete",
        "legacy-pth": "is a pickle of torch older than 1.6: re-save it with torch.save in a machine you trust",
    }
    raise InputError(f"{path}: {meanings.get(kind, 'is none of GGUF, safetensors or a torch zip file')}")
