"""Compiles every kernel of this folder for a GPU that need not be there, and reads what became of it.

    module with DTYPE -> its `Launch` values -> Triton -> PTX, cubin -> registers, stack bytes

Kernels are found, not listed: a new file in this folder is compiled and measured at once. The tests ask that no kernel
spills to the stack and that none divides, takes roots or contracts in a way that rounds unlike the specification.
Triton ships ptxas and cuobjdump. A process with TRITON_INTERPRET set cannot compile.
"""

from __future__ import annotations

import pkgutil
import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...errors import UsageError
from .launch import Launch

CAPABILITIES = (80, 90, 100)
FLOAT_TYPES = ("fp32", "fp16", "bf16")
INEXACT = re.compile(
    r"div\.full|\.approx|\.ftz|fma\.rn\.f32"
)  # instructions that round unlike IEEE's single operations


@dataclass(frozen=True)
class Compiled:
    """One kernel for one capability."""

    ptx: str
    registers: int
    stack: int

    @property
    def inexact(self) -> list[str]:
        """The instructions that would not give the specification's bytes."""
        return sorted(set(INEXACT.findall(self.ptx)))


def modules() -> dict[str, ModuleType]:
    """{type name: module} of every number format in this folder."""
    names = (found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]))
    loaded = {name: import_module(f"{__package__}.{name}") for name in sorted(names) if name != "compile_check"}
    return {name: module for name, module in loaded.items() if hasattr(module, "DTYPE")}


def launches() -> dict[str, Launch]:
    """{"q4_k.ENCODE": Launch} of every kernel in this folder."""
    return {
        f"{name}.{constant}": value
        for name, module in modules().items()
        for constant, value in vars(module).items()
        if isinstance(value, Launch)
    }


def compile_launch(launch: Launch, capability: int, float_type: str) -> Compiled:
    """Compile for `capability` (80 is sm_80), with `float_type` behind `rows` and `weights`, as a call would."""
    if triton.knobs.runtime.interpret:
        raise UsageError("TRITON_INTERPRET is set: this process interprets kernels and cannot compile them")
    signature = {
        name: "*" + float_type if kind in ("rows", "weights") else kind for name, kind in launch.types.items()
    } | {"BLOCKS": "constexpr"}
    # pointers are aligned to 16 bytes: launch.py sees to it
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(launch.kernel, signature, {"BLOCKS": launch.blocks}, aligned)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.options)
    registers, stack = _resources(kernel.asm["cubin"])
    return Compiled(kernel.asm["ptx"], registers, stack)


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of the only kernel in `cubin`."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise UsageError(f"{cuobjdump}: wanted a line with REG and STACK, got {text!r}")
    return int(found[1]), int(found[2])
