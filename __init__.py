"""smelt: convert raw language-model weights, shrink them, and prove that they still work."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import convert, diff, fit, merge, open_checkpoint, perplexity, quantize, validate, verify
    from .convert.options import OpenOptions

__version__ = "0.1.0"
__all__ = [
    "OpenOptions",
    "convert",
    "diff",
    "fit",
    "merge",
    "open_checkpoint",
    "perplexity",
    "quantize",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    """The public functions, and their options, imported when first asked for: `import smelt` costs nothing."""
    if name in __all__:
        return getattr(import_module(".api", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps `smelt.convert` the function: importing a room of that name would bind its module in the function's place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
