"""snapshot_delete: check, clear the storage, remove the row. Completed once storage was touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, snapshots
from volctl.engine import journal
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError
from volctl.flows import fault, revert
from volctl.flows.context import Context
from volctl.model import Json, Object, Snapshot, Status
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

DELETABLE = (Status.AVAILABLE, Status.ERROR, Status.ERROR_DELETING)


@mutable
class SnapshotDeleteState:
    snapshot_id: str
    volume_id: str
    backend: str | None
    force: bool = False
    status: str = ""

    @property
    def object(self) -> Object:
        return Object("snap", self.snapshot_id)


SnapshotDeleteRun: TypeAlias = Run[Context, SnapshotDeleteState]


class SnapshotDeleteTask(Task[Context, SnapshotDeleteState]):
    """A task of the snapshot delete flow."""


class CheckSnapshotDeleteTask(SnapshotDeleteTask):
    """Refuses the wrong status, and what a revert has yet to read; then status `deleting`."""

    def gather(self, run: SnapshotDeleteRun) -> None:
        with run.env.store.read() as tx:
            snapshot = snapshots.get(tx, run.state.snapshot_id)
            reader = _unfinished_revert(tx, snapshot)
        if snapshot.status not in DELETABLE:
            raise ConflictError(f"snapshot {snapshot.label} is {snapshot.status}")
        if reader is not None and not run.state.force:  # with it, the volume is deleted next
            said = f"flow {reader} has yet to make its volume read as snapshot {snapshot.label}"
            raise ConflictError(said, hint=f"volctl flow retry {reader}, or volctl flow abandon {reader}")
        run.state.status = snapshot.status

    def record(self, tx: Connection, run: SnapshotDeleteRun) -> None:
        status = (Status(run.state.status),)
        snapshots.transition(tx, run.state.snapshot_id, status, Status.DELETING, run.request)
        events.add(tx, "snapshot_delete.start", run.state.snapshot_id, run.request, {})

    def unrecord(self, tx: Connection, run: SnapshotDeleteRun) -> None:
        status = Status(run.state.status)
        snapshots.transition(tx, run.state.snapshot_id, (Status.DELETING,), status, run.request)


class DeleteSnapshotStorageTask(SnapshotDeleteTask):
    """The backend deletes the snapshot; every other object keeps its content."""

    def plan(self, run: SnapshotDeleteRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: SnapshotDeleteRun) -> None:
        state = run.state
        if state.force and not run.env.backends.has(state.backend):
            return
        run.env.backends.get(state.backend).delete_snapshot(Object("volume", state.volume_id), state.object)


class DeleteSnapshotEntryTask(SnapshotDeleteTask):
    """The row is gone, and with it the use of quota."""

    def record(self, tx: Connection, run: SnapshotDeleteRun) -> None:
        snapshots.remove(tx, run.state.snapshot_id)
        events.add(tx, "snapshot_delete.end", run.state.snapshot_id, run.request, {})


def _unfinished_revert(tx: Connection, snapshot: Snapshot) -> str | None:
    for flow_id in journal.open_of(tx, snapshot.volume_id):
        flow = journal.load(tx, flow_id)
        if flow and flow["name"] == revert.FLOW.name and flow["state"].get("snapshot_id") == snapshot.id:
            return flow_id
    return None


def stuck(tx: Connection, run: SnapshotDeleteRun) -> None:
    """The storage could not be cleared: `error_deleting`, and the flow is tried again."""
    fault.keep(tx, run, (Status.DELETING, Status.ERROR_DELETING), Status.ERROR_DELETING)


FLOW = Flow(
    "snapshot_delete",
    SnapshotDeleteState,
    CheckSnapshotDeleteTask(),
    DeleteSnapshotStorageTask(),
    DeleteSnapshotEntryTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
)
