"""The forward pass of a model of any size: one layer's weights in memory at a time, all windows through it, release.

    read layer k+1 (a thread, stored bytes)   |  run layer k (float32) on every window
    ------------------------------------------+---------------------------------------
    decode k+1 to float32 after k is released; its stored bytes go tensor by tensor

Several models advance in step (layer 0 of the reference, layer 0 of each candidate, layer 1 of the reference, ...), so
that layer outputs are compared while they are in memory and none is kept for later. Peak memory, in bytes, of m models:

    4 P_layer + stored(P_layer) + 4 m C T d + activations(T)        P_layer parameters of a layer, C windows of T tokens,
                                                                    width d; + 4 n d while n distinct tokens are embedded
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..convert.model import LazyTensor, Model
from ..convert.progress import Progress, silent
from ..errors import ModelError, NonFiniteError
from ..formats.checkpoint import Bytes
from ..kernels.scheme import decode
from .modules import as_modules
from .replay import Replay
from .states import Keep, States, in_memory
from .weights import listed

Tokens = NDArray[np.int64]
Weights = dict[str, Tensor]
# Names -> (a function that gives their float32 tensors). The call reads, on a thread; the function decodes.
WeightSource = Callable[[Sequence[str]], Callable[[], Weights]]


def stored_weights(model: Model) -> WeightSource:
    """Weights as the model's files hold them. NonFiniteError names the first tensor with NaN or infinity."""

    def fetch(names: Sequence[str]) -> Callable[[], Weights]:
        stored = {name: _read(model.tensors[name]) for name in names}

        def decoded() -> Weights:
            return {name: _decode(model.tensors[name], stored.pop(name)) for name in names}

        return decoded

    return fetch


def _read(tensor: LazyTensor) -> Bytes:
    return tensor.read(0, tensor.matrix_shape[0])


def _decode(tensor: LazyTensor, stored: Bytes) -> Tensor:
    return finite(tensor.name, as_torch(decode(tensor.dtype, stored)).reshape(tensor.shape))


def as_torch(rows: NDArray[np.float32]) -> Tensor:
    """float32 rows as a tensor, without a copy where numpy owns them."""
    return torch.from_numpy(np.require(rows, np.float32, ["C", "W"]))


def finite(name: str, weights: Tensor) -> Tensor:
    """`weights` themselves; NonFiniteError names the tensor and the first NaN or infinity in it."""
    low, high = torch.aminmax(weights) if weights.numel() else (torch.zeros(()), torch.zeros(()))
    if not (torch.isfinite(low) and torch.isfinite(high)):
        matrix = weights.reshape(-1, weights.shape[-1] if weights.dim() else 1)
        row, column = (int(i) for i in torch.nonzero(~torch.isfinite(matrix))[0])
        raise NonFiniteError(
            f"{name}: weight at row {row}, column {column} is {float(matrix[row, column])}, wanted a finite number; "
            "get the file again or convert it anew",
            row,
            column,
        )
    return weights


class Stream:
    """One model on its way through its layers. `states[c]` is window c's hidden state, float32[1, T, d].

    `riders` are further lists of hidden states, of any number of windows, that go through each layer with `states`, while
    its weights are loaded; whoever follows the stream adds and removes them between two layers.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        windows: Sequence[Tokens],
        source: WeightSource | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
        keep: Keep = in_memory,
        device: torch.device | str = "cpu",
    ) -> None:
        """Builds the empty network, checks that every tensor has its place, embeds the windows (token ids [T]).

        after   what becomes of each layer's output before the next one sees it
        keep    where the hidden states live
        device  what computes; states and whatever comes out are the CPU's
        """
        self.name = name
        self.replay = Replay(model.config, device)
        self.model = model = replace(model, tensors=as_modules(model.tensors, self.replay.shapes))
        self.n_layers = len(self.replay.layers)
        self._source = source or stored_weights(model)
        self._after = after
        check_tensors(name, model, self.replay)
        self.replay.load_outer(self._source(self.replay.outer_names)())
        self.keep = keep
        self.states = keep(self._embed(windows), sum(len(window) for window in windows))
        self.riders: list[States] = []

    def _embed(self, windows: Sequence[Tokens]) -> Iterator[Tensor]:
        """Only the rows of tokens that occur are read, so the embedding is never whole in memory."""
        used = np.unique(np.concatenate(windows))
        tensor = self.model.tensors[self.replay.embedding_name]
        if used[-1] >= tensor.shape[0] or used[0] < 0:
            raise ModelError(
                f"{self.name}: the tokenizer gave id {used[-1]}, the embedding has {tensor.shape[0]} rows: "
                "tokenizer and weights do not belong together"
            )
        breaks = np.flatnonzero(np.diff(used) > 1) + 1
        runs = np.split(used, breaks)
        rows = np.concatenate([tensor.read_float32(int(run[0]), int(run[-1]) + 1) for run in runs])
        weights = finite(tensor.name, as_torch(rows))
        for window in windows:
            yield self.replay.embed(weights, torch.from_numpy(np.searchsorted(used, window)))

    def fetch(self, layer: int) -> Callable[[], Weights]:
        """Read the layer's stored bytes; the function returned decodes them. For a card that is done at once, and the
        weights are on their way there while it still computes the layer before."""
        decoded = self._source(self.replay.layer_names[layer])
        if self.replay.on_cpu:
            return decoded
        weights = self.replay.placed(decoded())
        return lambda: weights

    def advance(self, layer: int, weights: Weights, tick: Callable[[int], None]) -> int | None:
        """Run `layer` on every window, then on the riders, all in place; then release it. The index of the first window
        of `states` whose output is not finite, or None; nothing runs after that one."""
        self.replay.load(layer, weights)
        weights.clear()
        try:
            for window, state in enumerate(self.states):
                output = self.states[window] = self._run(layer, state)
                if not torch.isfinite(output).all():
                    return window
                tick(window)
            for rider in self.riders:
                for window, state in enumerate(rider):
                    rider[window] = self._run(layer, state)
        finally:
            self.replay.release(layer)
        return None

    def _run(self, layer: int, state: Tensor) -> Tensor:
        output = self.replay.run_layer(layer, state)
        return output if self._after is None else self._after(output)


# (stream index, layer, first window that is not finite or None) -> go on with this stream?
Observer = Callable[[int, int, int | None], bool]


def run_layers(
    streams: Sequence[Stream],
    observe: Observer,
    progress: Progress = silent,
    first: int = 0,
    stopped: Iterable[int] = (),
) -> None:
    """Every stream through every layer, in step. After each layer of each stream `observe(stream, layer, bad)` sees
    `streams[stream].states`; where it answers False that stream stops.

    first    steps that are done already: step k is layer k // m of stream k % m, of m streams
    stopped  streams that stopped before
    """
    steps = [(layer, index) for layer in range(streams[0].n_layers) for index in range(len(streams))]
    total = sum(len(streams[index].states) for _, index in steps)
    done = sum(len(streams[index].states) for _, index in steps[:first])
    left_behind = set(stopped)

    def following(place: int) -> tuple[int, int] | None:
        return next((step for step in steps[place:] if step[1] not in left_behind), None)

    with ThreadPoolExecutor(1) as reader:
        coming = [reader.submit(streams[step[1]].fetch, step[0]) for step in [following(first)] if step]
        for place, (layer, index) in enumerate(steps[first:], first):
            if index in left_behind:
                continue
            weights = coming.pop().result()()
            step = following(place + 1)
            if step is not None:
                coming.append(reader.submit(streams[step[1]].fetch, step[0]))
            label = f"layer {layer + 1}/{streams[0].n_layers}"
            bad = streams[index].advance(layer, weights, _ticker(progress, done, total, label))
            done += len(streams[index].states)
            if not observe(index, layer, bad):
                left_behind.add(index)


def _ticker(progress: Progress, start: int, total: int, label: str) -> Callable[[int], None]:
    return lambda window: progress(start + window + 1, total, label)


def check_tensors(name: str, model: Model, replay: Replay) -> None:
    """Every parameter has its tensor, of the right shape, and no tensor is left over; else ModelError lists them."""
    missing = [n for n in replay.shapes if n not in model.tensors]
    unused = [n for n in model.tensors if n not in replay.shapes]
    shapes = [
        f"{n} is {list(model.tensors[n].shape)}, wanted {list(shape)}"
        for n, shape in replay.shapes.items()
        if n in model.tensors and tuple(model.tensors[n].shape) != shape
    ]
    told = [
        f"{what}: {listed(names)}"
        for what, names in (("missing", missing), ("not used by the forward pass", unused), ("wrong shape", shapes))
        if names
    ]
    if told:
        raise ModelError(
            f"{name}: the tensors do not fit the config of this {model.architecture} model; " + "; ".join(told)
        )
