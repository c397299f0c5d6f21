"""Third parties' containers: which one a path is, and its tensors. Asked only where no format of smelt's own is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ..errors import PluginError
from ..formats.checkpoint import Checkpoint
from ..formats.container import Format, check_checkpoint, format_problems
from .plugins import every_plugin, find_plugin, plugin_call, plugin_names, plugin_source

GROUP: Final = "smelt.formats"
OWN = frozenset(("meta", "metaseq", "safetensors", "bin", "gguf"))  # what smelt reads and writes itself


def third_party_formats() -> tuple[str, ...]:
    """The names of the plugins' containers; none is loaded."""
    return plugin_names(GROUP)


def third_party_format(name: str) -> Format | None:
    """A plugin's container by its name; None where no plugin brings it. PluginError where smelt has the name as well."""
    return find_plugin(GROUP, Format, name, OWN, format_problems)


def claiming_format(path: Path) -> Format | None:
    """The plugin's container that the file or folder at `path` is; None where it is no plugin's. Loads all of them.

    PluginError where two claim it.
    """
    found = [one for one in every_plugin(GROUP, Format, OWN, format_problems) if _claims(one, path)]
    if len(found) > 1:
        both = " and ".join(f"{one.name} ({plugin_source(GROUP, one.name)})" for one in found)
        raise PluginError(f"{path}: is claimed by two formats: {both}: uninstall one of the two")
    return found[0] if found else None


def open_container(format_: Format, path: Path) -> Checkpoint:
    """Its tensors, without reading their data."""
    opened = plugin_call(GROUP, format_.name, f"opens {path}", lambda: format_.open(path))
    return check_checkpoint(format_, opened)


def _claims(format_: Format, path: Path) -> bool:
    return plugin_call(GROUP, format_.name, f"looks at {path}", lambda: bool(format_.claims(path)))
