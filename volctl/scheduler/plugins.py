"""Filters and weighers by name: ours, else a third party's through an entry point.

A stranger's package declares, in the group `volctl.scheduler.filters` or `volctl.scheduler.weighers`,
its class under its name; it is looked up only for a name that is not ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from volctl.errors import ConfigError

T = TypeVar("T")


def find(name: str, ours: Mapping[str, type[T]], base: type[T], group: str) -> type[T]:
    """The class; `ConfigError` names the nearest known name for an unknown one."""
    if name in ours:
        return ours[name]
    from importlib.metadata import entry_points

    what = group.rpartition(".")[2].removesuffix("s")
    entries = {entry.name: entry for entry in entry_points(group=group)}
    if name not in entries:
        raise ConfigError(f"there is no {what} {name!r}", hint=_nearest(name, [*ours, *entries]))
    try:
        loaded = entries[name].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the {what} {name!r} ({entries[name].value}) cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise ConfigError(f"the {what} {name!r} ({entries[name].value}) is not a subclass of {base.__name__}")
    return loaded


def _nearest(name: str, known: list[str]) -> str:
    import difflib

    if near := difflib.get_close_matches(name, known, 1, 0.5):
        return f"did you mean {near[0]}?"
    return f"known: {', '.join(sorted(known))}"
