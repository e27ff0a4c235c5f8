"""An object's size beside its row's, asked before its bytes go on: what was cut would be hidden, or spread."""

from __future__ import annotations

from volctl.backend import Backend
from volctl.errors import BackendError
from volctl.model import Object

ADVICE = "volctl doctor says what can be done"


def found(backend: Backend, target: Object, size: int) -> int:
    """Bytes that the object has. `size`, of its row, where it is not there, or where to look costs a program."""
    seen = None if backend.exact else backend.inspect(target)
    return seen.size if seen else size


def check(backend: Backend, target: Object, size: int) -> None:
    """`BackendError` for an object that is there with another size than its row says."""
    if (there := found(backend, target, size)) != size:
        raise differs(target, there, size)


def differs(target: Object, there: int, size: int) -> BackendError:
    return BackendError(f"{target.name} has {there} bytes, its row says {size}", hint=ADVICE)
