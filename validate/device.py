"""What computes the forward passes: the CPU, or a CUDA card.

    auto   the card where torch finds one, else the CPU
    cpu    the CPU alone
    cuda   the card; DeviceError where there is none

Weights are read and decoded by the CPU either way, so what is measured are the bytes of the file. A card gets them as
float32 from pinned memory, the next layer's while it computes this one's, and multiplies in float32, without TF32. Its sums
run in another order: numbers differ from the CPU's by rounding, and a report says which device they are from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import DeviceError, UsageError

DEVICES = ("auto", "cpu", "cuda")


def open_device(name: str) -> torch.device:
    """The device `name`; UsageError where it is unknown, DeviceError where it is not there."""
    if name not in DEVICES:
        raise UsageError(f"--device {name}: wanted one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceError(
            "--device cuda: torch finds no CUDA device: say --device cpu, or install the driver and a CUDA build of torch"
        )
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", torch.cuda.current_device())


def device_name(device: torch.device) -> str:
    """For a report: "cpu", or the card's own name."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def to_device(weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on `device`, complete; for a card in a queue of its own, so that what it computes goes on meanwhile."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in weights.items()}
    queue = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(queue):
        placed = {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in weights.items()}
    queue.synchronize()
    return placed
