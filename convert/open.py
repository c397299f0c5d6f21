"""A path -> Model, whatever it is: the format is told from bytes and folder contents, never from a name alone."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..formats.sniff import sniff
from .gguf import read_gguf_model
from .hugging_face import read_hugging_face_model
from .meta import is_meta, read_meta
from .model import Model
from .options import OpenOptions


def open_model(path: Path, options: OpenOptions | None = None) -> Model:
    """Open a Meta folder, a Hugging Face folder, a .safetensors file or a .gguf file. Reads headers only.

    InputError and its kin say in one line what is wrong with it and what to do next.
    """
    options = options or OpenOptions()
    kind, where = identify(path)
    if kind == "meta":
        return read_meta(where, options)
    if kind == "safetensors":
        return read_hugging_face_model(where, options)
    return read_gguf_model(where, options)


def identify(path: Path) -> tuple[str, Path]:
    """-> ("meta" | "safetensors" | "gguf", the folder or file to open); InputError says what else it is."""
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
    ggufs = sorted(folder.glob("*.gguf"))
    first_parts = [file for file in ggufs if "-of-" not in file.stem or file.stem.split("-of-")[0].endswith("-00001")]
    found += [("gguf", file) for file in first_parts]
    if len(found) > 1:
        names = " and ".join(f"{kind} ({where.name})" for kind, where in found)
        raise InputError(f"{folder}: holds more than one model: {names}: name the one you mean, or move the other away")
    if not found:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        hint = ""
        if any(folder.glob("pytorch_model*.bin")):
            hint = "; pytorch_model*.bin folders are not read yet: use the safetensors files of the same model"
        raise InputError(
            f"{folder}: no consolidated.NN.pth, *.safetensors or *.gguf in it, but {names}: is it the model's folder?{hint}"
        )
    return found[0]


def _identify_file(path: Path) -> tuple[str, Path]:
    kind = sniff(path)
    if kind == "pth":
        return "meta", path.parent
    if kind in ("gguf", "safetensors"):
        return kind, path
    meanings = {
        "lfs-pointer": "is a git-lfs pointer, not the file itself: run git lfs pull, or download it again",
        "html": "is a web page, not a model: the download was refused or redirected; download it again",
        "empty": "is empty: the download is incomplete",
        "legacy-pth": "is a pickle of torch older than 1.6: re-save it with torch.save in a machine you trust",
    }
    raise InputError(f"{path}: {meanings.get(kind, 'is none of GGUF, safetensors or a torch zip file')}")
