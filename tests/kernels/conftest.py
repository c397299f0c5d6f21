"""`from kernel_cases import matrices` works in this folder's tests, as the root conftest explains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("kernel_cases", Path(__file__).with_name("kernel_cases.py"))
if _SPEC is None or _SPEC.loader is None:
    raise ImportError("kernel_cases")
sys.modules["kernel_cases"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["kernel_cases"])
