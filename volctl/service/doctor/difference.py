"""What `doctor` finds: a class for each kind of difference between the rows and what is there.

A difference is suspected from one listing and one view of the rows, then looked at again under the lock
of its volume: what a live command is making is none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import field
from typing import TYPE_CHECKING, Any, ClassVar

from volctl.backend import Backend
from volctl.db import snapshots, volumes
from volctl.engine import journal
from volctl.engine.locks import LockSet, Names
from volctl.errors import BackendError, ConflictError
from volctl.model import Object, Snapshot, Status, Volume
from volctl.records import mutable

if TYPE_CHECKING:
    from volctl.service.session import Session

RESTING = (Status.AVAILABLE, Status.IN_USE, Status.ERROR, Status.ERROR_DELETING)
HOLDING = (Status.AVAILABLE, Status.IN_USE)
"""Statuses that promise that the object is there."""
DRIFT = "drift"
"""The code of a fault that `doctor` found and nobody's work made: when its cause is gone, so may it be."""


@mutable
class Difference:
    """`object` is what it is about, `id` that of its row or of the object, `locks` what guards it.

    `problem` and `fix` are sentences; `fix` is None where nothing may be done without a person.
    """

    kind: ClassVar[str]
    deletes: ClassVar[bool] = False
    """The repair takes bytes away."""
    object: str
    id: str | None = None
    name: str | None = None
    backend: str | None = None
    locks: Names = field(default_factory=dict)
    problem: str = ""
    fix: str | None = None

    def look(self, session: Session) -> bool:
        """Under the lock: is it (still) so? Fills `problem` and `fix`."""
        return True

    def repair(self, session: Session, locks: LockSet) -> None:
        """Under the same lock, after `look`."""
        raise ConflictError(self.problem, hint=self.fix)


def volume_of(session: Session, volume_id: str | None) -> Volume | None:
    with session.store.read() as tx:
        return volumes.find(tx, volume_id or "")


def snapshot_of(session: Session, snapshot_id: str | None) -> Snapshot | None:
    with session.store.read() as tx:
        return snapshots.find(tx, snapshot_id or "")


def row_of(session: Session, target: Object) -> Volume | Snapshot | None:
    return snapshot_of(session, target.id) if target.kind == "snap" else volume_of(session, target.id)


def worked_on(session: Session, object_id: str | None) -> bool:
    with session.store.read() as tx:
        return bool(object_id) and journal.is_open_for(tx, object_id or "")


def size_of(backend: Backend, target: Object) -> int | None:
    """Bytes of an object; None if it is not there, or something else bears its name."""
    try:
        found = backend.inspect(target)
    except BackendError:
        if any(problem.fatal for problem in backend.check()):
            raise
        return None
    return found.size if found else None


def backend_of(session: Session, name: str | None) -> Backend:
    return session.env.backends.get(name)


def set_status(session: Session, target: Object, source: Iterable[Status], status: Status, **values: Any) -> None:
    """Of the row of a volume or snapshot."""
    transition = snapshots.transition if target.kind == "snap" else volumes.transition
    with session.store.write() as tx:
        transition(tx, target.id, source, status, new_request(), **values)


def new_request() -> str:
    return str(uuid.uuid4())
