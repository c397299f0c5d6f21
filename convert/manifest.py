"""What an output says of its own making: `smelt.json` in a folder, `<file>.smelt.json` beside a file.

It holds no times and no absolute paths, so that the same conversion gives the same bytes anywhere.
"""

from __future__ import annotations

import json
from importlib.metadata import version

from .plan import Plan


def manifest(plan: Plan) -> bytes:
    """JSON: smelt's version, the sources by name and size, the family, the recipe, every file and tensor written."""
    document = {
        "smelt": version("smelt"),
        "sources": [{"file": path.name, "bytes": path.stat().st_size} for path in plan.sources],
        "architecture": plan.architecture,
        "format": plan.to,
        "recipe": plan.recipe,
        **({"provenance": dict(plan.provenance)} if plan.provenance else {}),
        "files": [{"file": name, "bytes": layout.nbytes} for name, layout in plan.files.items()],
        "tensors": {step.name: step.scheme.name for step in plan.steps},
        "notes": list(plan.notes),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")  # a file name that is not UTF-8 becomes JSON's own escape
