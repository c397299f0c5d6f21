"""What a file is, from its first bytes; a name is never believed.

"GGUF"                                  gguf
u64 length <= 100 MB, "{"               safetensors
"PK\\x03\\x04"                            pth: a zip, as torch.save writes since 1.6
pickle protocol 2..5, or tar            legacy-pth: what torch.save wrote before
"tjgg", "fmgg", "lmgg"                  legacy-ggml: llama.cpp's files before GGUF
"_logits_"                              log-probabilities: llama-perplexity's --kl-divergence-base file
"version https://git-lfs..."            lfs-pointer: a checkout without its large files
"<!doctype html", "<html"               html: a download that was answered by a web page
nothing                                 empty
"""

from __future__ import annotations

from pathlib import Path

from ..errors import FormatError
from .checkpoint import SourceFile

HEAD = 512  # bytes that decide; tar's magic at 257 lies farthest
SAVED_REFERENCE = b'{"__metadata__":{"smelt.reference":'
SAFETENSORS_HEADER_CAP = 100_000_000  # the reference reader's limit

ADVICE = {
    "gguf": "is a GGUF file",
    "safetensors": "is a safetensors file",
    "pth": "is a zip, as torch.save writes",
    "legacy-pth": "is a pickle outside a zip, as torch before 1.6 saved: save it again with a newer torch",
    "legacy-ggml": "is a GGML file from before GGUF: convert the original weights again",
    "log-probabilities": "is what llama-perplexity recorded of a model (--kl-divergence-base), a REFERENCE for smelt validate",
    "lfs-pointer": "is a Git LFS pointer, not the file itself: run `git lfs pull` in its checkout",
    "html": "is a web page: the download failed, fetch the file again",
    "empty": "is empty: fetch the file again",
    "unknown": "begins like no format that smelt reads",
}


def sniff(path: Path) -> str:
    """The kind of file at `path`, a key of `ADVICE`; InputError for what is not a regular file."""
    file = SourceFile(path)
    try:
        return sniff_file(file)
    finally:
        file.close()


def sniff_file(file: SourceFile) -> str:
    """The kind of an open file, a key of `ADVICE`."""
    return sniff_head(file.read(0, min(HEAD, file.nbytes)))


def sniff_head(head: bytes) -> str:
    """The kind of a file whose first bytes (512, or all there are) are `head`."""
    if not head:
        return "empty"
    if head.startswith(b"GGUF"):
        return "gguf"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "pth"
    if head.startswith((b"tjgg", b"fmgg", b"lmgg")):
        return "legacy-ggml"
    if head.startswith(b"_logits_"):
        return "log-probabilities"
    if head.startswith(b"version https://git-lfs"):
        return "lfs-pointer"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= SAFETENSORS_HEADER_CAP:
        return "safetensors"
    if (head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or head[257:262] == b"ustar":
        return "legacy-pth"
    return "unknown"


def is_saved_reference(path: Path) -> bool:
    """True for a safetensors file whose metadata begin as those that `smelt validate --save-reference` writes."""
    file = SourceFile(path)
    try:
        return file.nbytes >= 8 + len(SAVED_REFERENCE) and file.read(8, len(SAVED_REFERENCE)) == SAVED_REFERENCE
    finally:
        file.close()


def expect(file: SourceFile, kind: str) -> None:
    """FormatError, saying what the file is instead and what to do, where it is something else that smelt knows.

    A file that begins like nothing known passes: the reader of `kind` says what is wrong with it, byte by byte.
    """
    found = sniff_file(file)
    if found not in (kind, "unknown"):
        raise FormatError(f"{file.path}: is not {kind}: it {ADVICE[found]}")
