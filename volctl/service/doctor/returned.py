"""What is in `error` and is whole all the same: the way back of what somebody found, or was made since a backup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field
from typing import TYPE_CHECKING

from volctl.engine.locks import EXCLUSIVE, LockSet
from volctl.flows.orphan import is_unborn, is_whole
from volctl.model import Json, Object, Snapshot, Status, Volume, now
from volctl.records import mutable
from volctl.service.doctor import chains
from volctl.service.doctor.difference import DRIFT, Difference, backend_of, row_of, set_status, size_of, worked_on

if TYPE_CHECKING:
    from volctl.service.doctor.suspects import View
    from volctl.service.session import Session


@mutable
class Returned(Difference):
    """In `error` since `doctor` missed something, and nothing is missing any more; no work left it half done. Or
    since its create failed or was under way, as far as the rows know, and it is whole by its own word."""

    kind = "status"
    target: Object = field(kw_only=True)

    def look(self, session: Session) -> bool:
        row = row_of(session, self.target)
        if row is None or not (_is_drift(row) or _is_unborn(row)) or worked_on(session, self.id):
            return False
        backend = backend_of(session, self.backend)
        if _is_unborn(row) and not is_whole(backend, self.target, row.size):
            return False
        why = row.fault.message if row.fault else ""
        self.problem = f"it is in error ({why}), but {self.object} is there, and is as its row says"
        self.fix = f"set it to {_status(row)}"
        size = size_of(backend, self.target)
        return size == row.size > 0 and chains.below(session, self.backend, self.target) is None

    def repair(self, session: Session, locks: LockSet) -> None:
        row = row_of(session, self.target)
        assert row is not None
        born: Json = {"available_at": now(), "undescribed": True} if _is_unborn(row) else {}
        set_status(session, self.target, (Status.ERROR,), _status(row), fault=None, **born)


def suspects(view: View) -> Iterator[Difference]:
    for volume in view.volumes.values():
        yield from _suspect(view, volume, Object("volume", volume.id), volume.backend, volume.id)
    for snapshot in view.snapshots.values():
        yield from _suspect(view, snapshot, Object("snap", snapshot.id), view.backend_of(snapshot), snapshot.volume_id)


def _suspect(
    view: View, row: Volume | Snapshot, target: Object, backend: str | None, lock: str
) -> Iterator[Difference]:
    may = _is_drift(row) or _is_unborn(row)
    if backend in view.listings and may and view.size(backend, target) == row.size > 0:
        locks = {lock: EXCLUSIVE} | view.shared(backend, target.name)
        yield Returned(target.name, row.id, row.name, backend, locks, target=target)


def _is_drift(row: Volume | Snapshot) -> bool:
    return row.status is Status.ERROR and row.fault is not None and row.fault.code == DRIFT


def _is_unborn(row: Volume | Snapshot) -> bool:
    return isinstance(row, Volume) and is_unborn(row)


def _status(row: Volume | Snapshot) -> Status:
    return Status.IN_USE if isinstance(row, Volume) and row.attachment else Status.AVAILABLE
