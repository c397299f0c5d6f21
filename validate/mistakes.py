"""What a tensor really holds whose values have nothing to do with its namesake's: a converter's usual mistakes, by name.

    rows in the other rotary layout    q and k of a head in pairs (Meta, GGUF), wanted in halves (Hugging Face), or twice
                                       brought into halves
    rows shifted                       a vocabulary with a token too many at its start, or one too few
    another tensor of the reference    swapped layers, gate for up

Each is tried on the first slab of rows. The first two cost a comparison each; the last reads a part of every tensor
of the same shape, so it is not tried where many tensors are lost: that is another model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..convert.model import Config, LazyTensor
from ..dtypes import F32
from ..kernels.difference import Difference

Rows = NDArray[np.float32]

SLAB = 1 << 19  # weights
HEAD_ROWS = 256  # at least, so that a whole head is among them
SAMPLE = 1 << 16  # weights of a tensor that is sought among all others
ALIKE = 0.5  # relative error below which two are told to be the same
SOUGHT = 48  # tensors at most whose likeness is sought among all others: two layers' worth, biases included
SHIFTS = (1, -1, 2, -2, 3, -3)  # rows
_ROTARY = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def explain(
    names: Sequence[str], candidate: Mapping[str, LazyTensor], reference: Mapping[str, LazyTensor], config: Config
) -> dict[str, str]:
    """Tensors of the candidate that are not what they are called -> what they are, of those where that can be told."""
    found = {}
    for name in names:
        ours, theirs = _first_rows(reference[name]), _first_rows(candidate[name])
        said = _other_rotary_layout(name, ours, theirs, config, reference[name].shape[0]) or _shifted(ours, theirs)
        if said is not None:
            found[name] = said
    left = [name for name in names if name not in found]
    for name in left if len(left) <= SOUGHT else ():
        other = _namesake(name, _first_rows(candidate[name], SAMPLE, 1), reference)
        if other is not None:
            found[name] = f"it is the reference's {other}"
    return found


def _first_rows(tensor: LazyTensor, weights: int = SLAB, least: int = HEAD_ROWS) -> Rows:
    """As many rows as hold so many weights, `least` in any case; a vector is a column."""
    if len(tensor.shape) < 2:
        return tensor.load_float32().reshape(-1, 1)
    n_rows, columns = tensor.matrix_shape
    return tensor.read_float32(0, min(n_rows, max(least, weights // max(1, columns))))


def _alike(ours: Rows, theirs: Rows) -> bool:
    found = Difference()
    found.add(np.ascontiguousarray(ours), np.ascontiguousarray(theirs), F32)
    return ours.size > 0 and found.is_finite and found.relative_error < ALIKE


def _other_rotary_layout(name: str, ours: Rows, theirs: Rows, config: Config, n_rows: int) -> str | None:
    role = next((role for role in _ROTARY if f".{role}." in name), None)
    heads = config.get(_ROTARY[role]) or config.get("num_attention_heads") if role else None
    if not isinstance(heads, int) or n_rows % (2 * heads) or n_rows == 2 * heads:
        return None
    width = n_rows // heads
    whole = len(ours) // width * width
    per_head = ours[:whole].reshape(-1, width, ours.shape[1])
    pairs = per_head.reshape(-1, 2, width // 2, ours.shape[1]).swapaxes(1, 2)
    if _alike(pairs.reshape(whole, -1), theirs[:whole]):
        return "its rows are in the other rotary layout: pairs, wanted halves"
    halves = per_head.reshape(-1, width // 2, 2, ours.shape[1]).swapaxes(1, 2)
    if _alike(halves.reshape(whole, -1), theirs[:whole]):
        return "its rows are in the other rotary layout: brought from pairs to halves once too often"
    return None


def _shifted(ours: Rows, theirs: Rows) -> str | None:
    for shift in SHIFTS:
        if abs(shift) < len(ours):
            here, there = (theirs[shift:], ours[:-shift]) if shift > 0 else (theirs[:shift], ours[-shift:])
            if _alike(there, here):
                rows = "one row" if abs(shift) == 1 else f"{abs(shift)} rows"
                return f"its rows are shifted by {rows}: row {max(shift, 0)} is the reference's row {max(-shift, 0)}"
    return None


def _namesake(name: str, rows: Rows, reference: Mapping[str, LazyTensor]) -> str | None:
    """The reference's tensor that these first rows are of."""
    shape = reference[name].shape
    others: Iterable[str] = (other for other in reference if other != name and reference[other].shape == shape)
    return next((other for other in others if _alike(_first_rows(reference[other], SAMPLE, 1), rows)), None)
