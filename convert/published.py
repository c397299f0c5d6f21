"""The digests that the makers of a model, or those who had it first, have published.

    published_digests.json: [{model, source, firm, note?, shared, files: {name: {md5?, sha256?}}}]

`firm` is False where one person's list is all there is: a file that differs from it is not called bad. `shared` are files
that other models of the same shape have too: they do not tell which model a folder holds. Each entry names its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

ALGORITHMS = ("md5", "sha256")


@dataclass(frozen=True)
class PublishedModel:
    """One model's files as they were published: {file name: {"md5" | "sha256": hex digest}}."""

    model: str
    source: str
    firm: bool
    shared: tuple[str, ...]
    files: Mapping[str, Mapping[str, str]]

    def holds(self, name: str, digests: Mapping[str, str]) -> bool:
        """True where `digests` are what was published for `name`, in every algorithm that both know."""
        wanted = self.files.get(name, {})
        known = [algorithm for algorithm in ALGORITHMS if algorithm in wanted and algorithm in digests]
        return bool(known) and all(wanted[algorithm] == digests[algorithm] for algorithm in known)


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """Every list that ships with smelt."""
    content = json.loads(files(__package__).joinpath("published_digests.json").read_text())
    return tuple(
        PublishedModel(entry["model"], entry["source"], entry["firm"], tuple(entry["shared"]), entry["files"])
        for entry in content
    )


def published_names() -> frozenset[str]:
    """The names of files that some list knows."""
    return frozenset(name for model in published_models() for name in model.files)


def published_as(name: str, digests: Mapping[str, str]) -> PublishedModel | None:
    """The model of which a file of this name and these digests was published."""
    return next((model for model in published_models() if model.holds(name, digests)), None)


def belonging(name: str, folder: Mapping[str, Mapping[str, str]]) -> PublishedModel | None:
    """The model that published a file of this name and one that lies in `folder`, {file name: digests}, and is its alone."""
    for model in published_models():
        own = (other for other in folder if other not in model.shared)
        if model.firm and name in model.files and any(model.holds(other, folder[other]) for other in own):
            return model
    return None
