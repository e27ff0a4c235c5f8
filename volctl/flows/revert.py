"""volume_revert: make a volume read as one of its snapshots again. Completed once storage was touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, snapshots, volumes
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError, UsageError, VolctlError
from volctl.flows import about, fault, sizes
from volctl.flows.context import Context
from volctl.flows.delete import check_holders
from volctl.model import Json, Object, Status
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class RevertState:
    """`size` is the volume's present size, which it keeps."""

    volume_id: str
    snapshot_id: str
    size: int = 0
    backend: str | None = None

    @property
    def object(self) -> Object:
        return Object("volume", self.volume_id)


RevertRun: TypeAlias = Run[Context, RevertState]


class RevertTask(Task[Context, RevertState]):
    """A task of the revert flow."""


class CheckRevertTask(RevertTask):
    """The volume is available and free, the snapshot its own, available and whole; then status `reverting`."""

    def gather(self, run: RevertRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            snapshot = snapshots.get(tx, state.snapshot_id)
        name = volume.label
        if snapshot.volume_id != volume.id:
            raise UsageError(f"snapshot {snapshot.label} is of another volume than {name}")
        if volume.status is not Status.AVAILABLE:
            raise ConflictError(f"volume {name} is {volume.status}, not available", volume=volume.id)
        if snapshot.status is not Status.AVAILABLE:
            raise ConflictError(f"snapshot {snapshot.label} is {snapshot.status}, not available")
        check_holders(run.env, volume)
        sizes.check(run.env.backends.get(volume.backend), Object("snap", snapshot.id), snapshot.size)
        state.size, state.backend = volume.size, volume.backend

    def record(self, tx: Connection, run: RevertRun) -> None:
        volumes.transition(tx, run.state.volume_id, (Status.AVAILABLE,), Status.REVERTING, run.request)
        events.add(tx, "revert.start", run.state.volume_id, run.request, {"snapshot": run.state.snapshot_id})

    def unrecord(self, tx: Connection, run: RevertRun) -> None:
        volumes.transition(tx, run.state.volume_id, (Status.REVERTING,), Status.AVAILABLE, run.request)


class RevertStorageTask(RevertTask):
    """The backend reverts; the snapshot stays, the tail behind it reads as zeros."""

    def plan(self, run: RevertRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: RevertRun) -> None:
        state = run.state
        backend = run.env.backends.get(state.backend)
        try:
            volume = about.volume(run.env, state.volume_id)
            backend.revert(volume, Object("snap", state.snapshot_id), state.size)
        except VolctlError as error:
            error.untouched = error.untouched and not run.resumed  # who died may have written before
            raise


class FinishRevertTask(RevertTask):
    """Available again."""

    def record(self, tx: Connection, run: RevertRun) -> None:
        status = (Status.REVERTING, Status.ERROR)
        volumes.transition(tx, run.state.volume_id, status, Status.AVAILABLE, run.request, fault=None)
        events.add(tx, "revert.end", run.state.volume_id, run.request, {"snapshot": run.state.snapshot_id})


def stuck(tx: Connection, run: RevertRun) -> None:
    """Half reverted bytes are never `available`: `error`, until the flow was completed."""
    fault.keep(tx, run, (Status.REVERTING, Status.ERROR), Status.ERROR)


FLOW = Flow(
    "volume_revert",
    RevertState,
    CheckRevertTask(),
    RevertStorageTask(),
    FinishRevertTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
    beside=fault.BESIDE,
)
