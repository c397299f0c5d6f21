"""The digest of a file's bytes apart from its tensors: SHA-256 of all that lies outside their data, in file order.

    | header | tensor | padding | tensor | ... | directory |       ->   SHA-256(header, padding, directory)

With a digest of each tensor's values it covers every byte of a file, and costs next to nothing for a source of any size.
A file that holds no tensors (a config, a tokenizer) is digested whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..formats.checkpoint import SourceFile, StoredTensor
from ..formats.gguf_read import read_file as read_gguf
from ..formats.pth import open_pth
from ..formats.safetensors_read import read_file as read_safetensors
from ..formats.sniff import sniff, sniff_file
from ..formats.stored_zip import read_members

CHUNK = 8 << 20  # bytes read at once


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by their names there; none where it is no file of tensors. FormatError as its reader says."""
    kind = sniff(path)
    if kind == "gguf":
        return dict(read_gguf(path)[1])
    if kind == "safetensors":
        return dict(read_safetensors(path)[0])
    return dict(open_pth(path).tensors) if kind == "pth" else {}


def header_sha256(path: Path) -> str:
    """Hex digest of the file at `path`. InputError where it cannot be read."""
    file = SourceFile(path)
    try:
        if sniff_file(file) == "pth":  # its storages, whatever the pickle makes of them
            extents = [(m.offset, m.nbytes) for m in read_members(file).values() if "/data/" in m.name]
        else:
            extents = [(tensor.offset, extent(tensor)) for tensor in stored_tensors(path).values()]
        return outside_sha256(file.nbytes, extents, file.read)
    finally:
        file.close()


def extent(tensor: StoredTensor) -> int:
    """Bytes from a tensor's first element to its last."""
    if tensor.strides is None or tensor.nbytes == 0:
        return tensor.nbytes
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    return (last + 1) * tensor.dtype.row_nbytes(1)


def outside_sha256(nbytes: int, extents: Iterable[tuple[int, int]], read: Callable[[int, int], bytes]) -> str:
    """Hex digest of a file of `nbytes` bytes outside `extents` (offset, bytes); `read(offset, nbytes)` gives its bytes."""
    digest = hashlib.sha256()
    for start, stop in _gaps(nbytes, extents):
        for offset in range(start, stop, CHUNK):
            digest.update(read(offset, min(CHUNK, stop - offset)))
    return digest.hexdigest()


def _gaps(nbytes: int, extents: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What the extents leave of [0, nbytes), in order; they may overlap, as views of one storage do."""
    reached = 0
    for offset, size in sorted(extents):
        if offset > reached:
            yield reached, offset
        reached = max(reached, offset + size)
    if reached < nbytes:
        yield reached, nbytes
