"""Backends by their kind: our module `backends.<kind>`, else whoever is in the entry-point group `volctl.backends`."""

from __future__ import annotations

import importlib
from pathlib import Path

from volctl.backend import Backend
from volctl.errors import ConfigError

ENTRY_POINTS = "volctl.backends"
OURS = ("loop", "lvm", "qcow2", "fake")


def load(kind: str) -> type[Backend]:
    """The class for a kind. `ConfigError` names the known kinds for an unknown one."""
    if kind in Backend.kinds:
        return Backend.kinds[kind]
    if kind in OURS:
        _load_ours(kind)
    else:
        _load_foreign(kind)
    if kind not in Backend.kinds:
        raise ConfigError(f"no backend of kind {kind!r} is installed", hint="known kinds: loop, lvm, qcow2")
    return Backend.kinds[kind]


def _load_ours(kind: str) -> None:
    """Import `backends.<kind>`, after seeing that `backends` is the package beside ours."""
    from importlib.util import find_spec

    spec = find_spec("backends")
    ours = Path(__file__).resolve().parent.parent / "backends" / "__init__.py"
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != ours:
        where = spec.origin if spec else "nowhere"
        raise ConfigError(f"another package named 'backends' ({where}) hides volctl's own", hint=f"expected {ours}")
    try:
        importlib.import_module(f"backends.{kind}")
    except ModuleNotFoundError as error:
        if error.name != f"backends.{kind}":
            raise
        raise ConfigError(f"backends of kind {kind!r} are not in this version") from error


def _load_foreign(kind: str) -> None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=ENTRY_POINTS, name=kind):
        loaded = entry.load()
        Backend.kinds.setdefault(kind, loaded)
