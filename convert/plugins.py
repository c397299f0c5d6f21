"""What other packages add to smelt: entry points in three groups, loaded when a lookup needs them, never before.

    group                  the entry point's value                            its contract
    smelt.formats          Format   tells, opens and lays out a container     formats/container.py
    smelt.architectures    Family   a model family as a table                 convert/architecture.py
    smelt.schemes          Scheme   how one weight is stored                  kernels/scheme.py, convert/packed.py

    [project.entry-points."smelt.schemes"]
    int8-row = "npy_folder.int8_row:SCHEME"          the entry point's name is the value's own

What smelt has itself is looked up first, so a plugin costs nothing until something is asked for that smelt does not have.
Asked for by name (`--to`, `--scheme`), one plugin is loaded; where a file or a config must be recognised, all of the group.
Whatever is wrong with a plugin is one PluginError that names its distribution and entry point, and so is a name that smelt or
another plugin has as well: it is raised where that plugin is needed, and never worked around.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

from ..errors import PluginError, SmeltError, quoted

Group = Literal["smelt.formats", "smelt.architectures", "smelt.schemes"]
T = TypeVar("T")

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def plugin_names(group: Group) -> tuple[str, ...]:
    """The names in `group`, nothing loaded."""
    return tuple(_points(group))


def find_plugin(
    group: Group, kind: type[T], name: str, built_in: Collection[str], problems: Callable[[T], list[str]]
) -> T | None:
    """The value by its name; None where no plugin has it. No other plugin is loaded.

    built_in  names that are smelt's own;  problems  says, in sentences, what of a value of the right class is wrong
    PluginError for a name that is taken, a plugin that cannot be loaded, and a value that is not what it should be.
    """
    points = _points(group).get(name, ())
    if not points:
        return None
    who = _who(points[0])
    if name in built_in or NAME.fullmatch(name) is None:
        why = f"smelt has a {name} of its own" if name in built_in else "its name is not of a-z, 0-9, dots and dashes"
        raise PluginError(f"{who}: {why}: rename the plugin's, or uninstall it")
    if len(points) > 1:
        raise PluginError(f"{who} and {_who(points[1])} have the same name: uninstall one of the two")
    value = _loaded(points[0])
    if not isinstance(value, kind):
        raise PluginError(f"{who}: gives a {type(value).__name__}, wanted a {kind.__module__}.{kind.__name__}")
    said = getattr(value, "name", None)
    wrong = [*([] if said == name else [f"its value calls itself {quoted(said)}"]), *problems(value)]
    if wrong:
        raise PluginError(f"{who}: {'; '.join(wrong)}: mend it, or uninstall it")
    return value


def every_plugin(
    group: Group, kind: type[T], built_in: Collection[str], problems: Callable[[T], list[str]]
) -> tuple[T, ...]:
    """All values of `group`, by name. PluginError as `find_plugin`."""
    found = (find_plugin(group, kind, name, built_in, problems) for name in plugin_names(group))
    return tuple(value for value in found if value is not None)


def plugin_call(group: Group, name: str, doing: str, call: Callable[[], T]) -> T:
    """What `call` into the plugin `name` gives. Its SmeltErrors are its own; anything else it raises is a PluginError."""
    try:
        return call()
    except SmeltError:
        raise
    except Exception as error:
        raise PluginError(f"{plugin_source(group, name)}: fails when it {doing}: {_described(error)}") from error


def plugin_source(group: Group, name: str) -> str:
    """The distribution and the entry point of a plugin, for a message."""
    points = _points(group).get(name, ())
    return _who(points[0]) if points else name


@cache
def _points(group: Group) -> dict[str, tuple[EntryPoint, ...]]:
    """{name: the entry points that have it}, by name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


@cache
def _loaded(point: EntryPoint) -> object:
    try:
        value: object = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_who(point)}: cannot be loaded: {_described(error)}: mend it, or uninstall it") from error
    return value


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {quoted(str(error))}"


def _who(point: EntryPoint) -> str:
    distribution = "an unknown distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{distribution}, entry point {point.group}: {point.name} = {point.value}"
