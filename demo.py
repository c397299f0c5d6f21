"""`smelt demo`: the whole story on the small trained model that smelt ships.

examples/tiny-llama (Meta, 2 shards)  ->  safetensors folder  ->  diff: equal
                                      ->  Q4_K_M GGUF         ->  validate against the original on held-out text
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .api import convert, default_threads, diff, quantize, validate
from .convert.options import OpenOptions
from .convert.progress import Progress
from .errors import ModelError
from .formats.disk import storage_errors
from .terminal import human
from .validate.options import ValidateOptions

if TYPE_CHECKING:
    from .validate.report import ValidationReport

CONTEXT = 512  # what examples/train_tiny_llama.py trains at; Meta's params.json has no place for it


@dataclass(frozen=True)
class DemoResult:
    """The files made, and what validating them showed."""

    files: tuple[Path, ...]
    report: ValidationReport

    def document(self) -> dict[str, Any]:
        """The JSON of `smelt demo`: the `validate` document and `files`."""
        return {**self.report.document(), "files": [str(path) for path in self.files]}


def demo(folder: Path, chunks: int, say: Callable[[str], None], progress: Progress | None = None) -> DemoResult:
    """Convert, compare, quantize and validate the bundled model into `folder`, telling each step through `say`."""
    with as_file(files("smelt") / "examples" / "tiny-llama") as source:
        options = OpenOptions(context_length=CONTEXT)
        say(f"The bundled model, as Meta would ship it: {source}")
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        hugging_face, shrunk = folder / "tiny-llama-hf", folder / "tiny-llama.q4_k_m.gguf"
        made = convert(source, hugging_face, options=options, force=True, progress=progress)
        say(f"1. convert   -> {made.target}  {human(made.nbytes)}, {made.tensors} tensors, {made.seconds:.1f} s")
        same = diff(source, hugging_face)
        if not same.equal:
            raise ModelError(
                f"{hugging_face}: {len(same.different)} tensors differ from the source: please report this"
            )
        say(f"   diff      {same.tensors} tensors, every value equal")
        small = quantize(source, shrunk, "q4_k_m", options=options, force=True, progress=progress)
        say(f"2. quantize  -> {small.target}  {human(small.nbytes)}, {small.seconds:.1f} s")
        say(f"3. validate  on {chunks} chunks of held-out text")
        text = (source / "heldout.txt").read_text(encoding="utf-8")
        measure = ValidateOptions(chunks=chunks, threads=default_threads())
        report = validate(source, [shrunk], text, measure, options, progress)
    return DemoResult((*made.files, *small.files), report)
