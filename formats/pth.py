"""Meta's .pth: torch.save's zip of raw storages and one pickle that says which tensor is which view of which storage.

    consolidated.00.pth  =  consolidated/data.pkl | .../byteorder | .../data/0 | .../data/1 | ... | .../version   (zip)
    data.pkl             -> {"norm.weight": TensorRef(StorageRef(F16, key "0", numel), offset, shape, strides), ...}
    StoredTensor.offset  = data/<key>'s first byte + offset * itemsize

The pickle is parsed, never run (`opcodes`); the zip is read strictly (`stored_zip`). A storage may hold many tensors, a
tensor may be a strided view: LLaMA-1 keeps a layer in one buffer, shards cut by `chunk(dim=1)` are column slices.
Opening reads the pickle and the zip's headers; only the CRCs of what is read there are checked, see `check_crc`.
Source: PyTorch, torch/serialization.py.
"""

from __future__ import annotations

from pathlib import Path

from ..dtypes import Shape
from ..errors import FormatError
from .checkpoint import Checkpoint, SourceFile, StoredTensor
from .opcodes import PICKLE_NBYTES, read_pickle
from .sniff import expect
from .stored_zip import Member, check_member_crc, read_members
from .torch_records import STRICT, InertObject, Policy, TensorRef

NAME_LENGTH = 1024
MAX_INNER_STRIDE = 64  # elements; wider gaps in both directions would read far more than the view holds


def open_pth(path: Path, policy: Policy = STRICT, inside: str | None = None) -> Checkpoint:
    """The dict of tensors in a file of torch.save (1.6 or later); top-level values that are none become metadata.

    FormatError for a file that is damaged, is something else or lies about itself; UnsafePickleError for a pickle that
    asks for more than tensors and `policy`'s stubs. Reads headers only.

    inside  the top-level key whose dict holds the tensors, where training states lie beside it: the other keys become
            metadata, whatever they hold
    """
    file = SourceFile(path)
    expect(file, "pth")
    members = read_members(file)
    archive = _archive(path, members)
    _check_byte_order(file, members.get(f"{archive}/byteorder"))
    program = members[f"{archive}/data.pkl"]
    if program.nbytes > PICKLE_NBYTES:
        raise FormatError(f"{path}: data.pkl has {program.nbytes} bytes, at most {PICKLE_NBYTES} are read")
    check_member_crc(file, program)
    value = read_pickle(file.read(program.offset, program.nbytes), f"{path}: data.pkl", policy)
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds a {type(value).__name__}, not a dict of tensors: save model.state_dict()")
    tensors: dict[str, StoredTensor] = {}
    metadata: dict[str, object] = {}
    if inside is not None:
        metadata, value = value, value.get(inside)
        if not isinstance(value, dict):
            raise FormatError(
                f"{path}: has no dict under {inside!r}, only {ascii(list(metadata)[:6])[:160]}: is it "
                "another kind of file?"
            )
    for name, item in value.items():
        if not isinstance(name, str):
            raise FormatError(f"{path}: the key {name} is not a tensor's name: save model.state_dict()")
        if not name.isprintable() or not 0 < len(name) <= NAME_LENGTH:
            raise FormatError(
                f"{path}: the name {ascii(name)[:80]} is empty, too long or not printable: rename that tensor"
            )
        if isinstance(item, TensorRef):
            tensors[name] = _place(file, members, archive, name, item)
        elif inside is None:
            metadata[name] = item
    _require_tensors(path, tensors, metadata if inside is None else {})
    return Checkpoint("pth", tensors, metadata, (path,))


def check_crc(path: Path) -> None:
    """Read the whole file through once; FormatError naming the first zip entry whose CRC-32 is wrong."""
    file = SourceFile(path)
    expect(file, "pth")
    for member in read_members(file).values():
        check_member_crc(file, member)


def _archive(path: Path, members: dict[str, Member]) -> str:
    """The one top-level folder, which holds data.pkl and no TorchScript."""
    folders = sorted({name.split("/", 1)[0] for name in members})
    if len(folders) != 1 or f"{folders[0]}/data.pkl" not in members:
        raise FormatError(
            f"{path}: is a zip but not of torch.save: wanted one folder with data.pkl, got {ascii(folders[:4])[:120]}"
        )
    if f"{folders[0]}/constants.pkl" in members or any(name.startswith(f"{folders[0]}/code/") for name in members):
        raise FormatError(
            f"{path}: is a TorchScript program (constants.pkl), not a dict of tensors: load it with torch.jit.load and "
            "torch.save its state_dict()"
        )
    return folders[0]


def _check_byte_order(file: SourceFile, member: Member | None) -> None:
    """Torch before 2.1 wrote no byteorder, on little-endian machines."""
    if member is None:
        return
    check_member_crc(file, member)
    order = file.read(member.offset, min(member.nbytes, 16))
    if order != b"little":
        raise FormatError(f"{file.path}: its byteorder is {order!a}, wanted little: save it on a little-endian machine")


def _place(file: SourceFile, members: dict[str, Member], archive: str, name: str, view: TensorRef) -> StoredTensor:
    """Where the tensor lies; its storage and the zip entry have to be of one size."""
    where = f"{file.path}: {ascii(name)[:120]}"
    storage = view.storage
    member = members.get(f"{archive}/data/{storage.key}")
    if member is None:
        raise FormatError(
            f"{where}: its storage data/{ascii(storage.key)[1:-1][:40]} is not in the file: fetch it again"
        )
    if member.nbytes != storage.nbytes:
        raise FormatError(
            f"{where}: its storage data/{storage.key} should have {storage.nbytes} bytes, the zip entry has "
            f"{member.nbytes}: the file is damaged, fetch it again"
        )
    strides = _strides(where, view.shape, view.strides)
    return StoredTensor(name, view.shape, view.dtype, file, member.offset + view.offset * view.dtype.nbytes, strides)


def _strides(where: str, shape: Shape, strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """None for a contiguous tensor, else strides that `StoredTensor` reads; FormatError where it cannot."""
    step, contiguous = 1, True
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        contiguous = contiguous and (size == 1 or stride == step)
        step *= size
    if contiguous or step == 0:
        return None
    # The stride of a dimension of one element means nothing; zero says so.
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    if len(shape) > 2 or (min(shape) > 1 and len(shape) == 2 and min(strides) > MAX_INNER_STRIDE):
        raise FormatError(f"{where}: is a view of shape {shape} and strides {strides}: save it as tensor.contiguous()")
    return strides


def _require_tensors(path: Path, tensors: dict[str, StoredTensor], metadata: dict[str, object]) -> None:
    """FormatError for a dict without tensors, or with some below the top level, which would be lost."""
    for key, value in metadata.items():
        if _holds_tensors(value):
            raise FormatError(
                f"{path}: has tensors inside {ascii(key)[:80]}, below its top level: save that dict of tensors alone"
            )
    if not tensors:
        raise FormatError(f"{path}: holds no tensors, only {ascii(list(metadata)[:4])[:160]}: save model.state_dict()")


def _holds_tensors(value: object) -> bool:
    """Nesting is bounded by `read_pickle`."""
    if isinstance(value, dict):
        value = tuple(value.values())
    elif isinstance(value, InertObject):
        value = (*value.arguments, value.state, *value.items)
    if isinstance(value, (tuple, list)):
        return any(_holds_tensors(item) for item in value)
    return isinstance(value, TensorRef)
