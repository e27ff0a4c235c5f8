"""What `doctor` once set to `error`, and is there again: the way back of a volume that somebody found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING

from volctl.engine.locks import EXCLUSIVE, LockSet
from volctl.model import Object, Snapshot, Status, Volume
from volctl.records import mutable
from volctl.service.doctor import chains
from volctl.service.doctor.difference import DRIFT, Difference, backend_of, row_of, set_status, size_of, worked_on

if TYPE_CHECKING:
    from volctl.service.doctor.suspects import View
    from volctl.service.session import Session


@mutable
class Returned(Difference):
    """In `error` since `doctor` missed something, and nothing is missing any more. No work left it half done."""

    kind = "status"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        row = row_of(session, self.target)
        if row is None or not _is_drift(row) or worked_on(session, self.id):
            return False
        why = row.fault.message if row.fault else ""
        self.problem = f"it is in error ({why}), but {self.object} is there, and is as its row says"
        self.fix = f"set it to {_status(row)}"
        size = size_of(backend_of(session, self.backend), self.target)
        return size == row.size > 0 and chains.below(session, self.backend, self.target) is None

    def repair(self, session: Session, locks: LockSet) -> None:
        row = row_of(session, self.target)
        assert row is not None
        set_status(session, self.target, (Status.ERROR,), _status(row), fault=None)


def suspects(view: View) -> Iterator[Difference]:
    for volume in view.volumes.values():
        yield from _suspect(view, volume, Object("volume", volume.id), volume.backend, volume.id)
    for snapshot in view.snapshots.values():
        yield from _suspect(view, snapshot, Object("snap", snapshot.id), view.backend_of(snapshot), snapshot.volume_id)


def _suspect(
    view: View, row: Volume | Snapshot, target: Object, backend: str | None, lock: str
) -> Iterator[Difference]:
    if backend in view.listings and _is_drift(row) and view.size(backend, target) == row.size > 0:
        locks = {lock: EXCLUSIVE} | view.shared(backend, target.name)
        yield Returned(target.name, row.id, row.name, backend, locks, target=target)


def _is_drift(row: Volume | Snapshot) -> bool:
    return row.status is Status.ERROR and row.fault is not None and row.fault.code == DRIFT


def _status(row: Volume | Snapshot) -> Status:
    return Status.IN_USE if isinstance(row, Volume) and row.attachment else Status.AVAILABLE
