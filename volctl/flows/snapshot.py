"""snapshot_create: check, reserve quota, make the row, take the snapshot, finish."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, quotas, snapshots, volumes
from volctl.db.quotas import Usage
from volctl.engine.running import Run
from volctl.engine.task import Flow, Task
from volctl.errors import ConflictError, ExistsError
from volctl.flows import about, fault, sizes
from volctl.flows.context import Context
from volctl.flows.request import check_still
from volctl.model import Json, Object, Status, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class SnapshotState:
    """A snapshot that is to be taken of a volume."""

    snapshot_id: str
    volume_id: str
    project: str
    name: str | None
    description: str | None
    properties: dict[str, str]
    size: int = 0
    type: str | None = None
    bootable: bool = False
    volume_properties: dict[str, str] = field(default_factory=dict)
    backend: str | None = None
    reservation: str | None = None

    @property
    def object(self) -> Object:
        return Object("snap", self.snapshot_id)


SnapshotRun: TypeAlias = Run[Context, SnapshotState]


class SnapshotTask(Task[Context, SnapshotState]):
    """A task of the snapshot flow."""


class CheckSnapshotTask(SnapshotTask):
    """The name is free, the volume is whole and available (or in use, where the backend clones in no time)."""

    def gather(self, run: SnapshotRun) -> None:
        state, env = run.state, run.env
        with env.store.read() as tx:
            if state.name is not None and snapshots.by_name(tx, state.project, state.name):
                raise ExistsError(f"there is a snapshot {state.name!r} already", hint="choose another name")
            volume = volumes.get(tx, state.volume_id)
        if volume.status not in (Status.AVAILABLE, Status.IN_USE):
            raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
        backend = env.backends.get(volume.backend)
        check_still(env, volume, stays=backend.capabilities.constant_time_clone)
        sizes.check(backend, Object("volume", volume.id), volume.size)
        state.size, state.type, state.backend = volume.size, volume.type, volume.backend
        state.bootable, state.volume_properties = volume.bootable, volume.properties


class ReserveSnapshotQuotaTask(SnapshotTask):
    """One snapshot, and its gigabytes unless `no_snapshot_gb_quota`."""

    def record(self, tx: Connection, run: SnapshotRun) -> None:
        state = run.state
        quota = run.env.quota(state.project)
        asked = Usage(snapshots=1, gigabytes=state.size if quota.snapshot_gigabytes else 0)
        state.reservation = quota.reserve(tx, asked, state.type, state.snapshot_id)

    def unrecord(self, tx: Connection, run: SnapshotRun) -> None:
        quotas.release(tx, run.state.reservation)


class SnapshotEntryTask(SnapshotTask):
    """The row, status `creating`. A cancelled snapshot leaves none; a failed one stays in `error`."""

    def record(self, tx: Connection, run: SnapshotRun) -> None:
        from sqlalchemy.exc import IntegrityError

        try:
            snapshots.insert_row(tx, as_row(run.state))
        except IntegrityError as error:
            raise ExistsError(f"there is a snapshot {run.state.name!r} already") from error
        events.add(tx, "snapshot.status", run.state.snapshot_id, run.request, {"from": None, "to": Status.CREATING})
        events.add(tx, "snapshot.start", run.state.snapshot_id, run.request, {"volume": run.state.volume_id})

    def unrecord(self, tx: Connection, run: SnapshotRun) -> None:
        if run.cause is not None and run.cause.erase:
            snapshots.remove(tx, run.state.snapshot_id)


class CommitSnapshotQuotaTask(SnapshotTask):
    """The row is summed from here on, so the reservation goes."""

    def record(self, tx: Connection, run: SnapshotRun) -> None:
        quotas.release(tx, run.state.reservation)


class SnapshotStorageTask(SnapshotTask):
    """The backend takes the snapshot. Undone, it deletes what it may hold of it."""

    def plan(self, run: SnapshotRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: SnapshotRun) -> None:
        backend = run.env.backends.get(run.state.backend)
        taken = about.snapshot(run.env, run.state.snapshot_id)
        backend.snapshot(about.volume(run.env, run.state.volume_id), taken)

    def revert(self, run: SnapshotRun) -> None:
        backend = run.env.backends.get(run.state.backend)
        backend.delete_snapshot(Object("volume", run.state.volume_id), run.state.object)


class FinishSnapshotTask(SnapshotTask):
    """Status `available`."""

    def record(self, tx: Connection, run: SnapshotRun) -> None:
        snapshots.transition(tx, run.state.snapshot_id, (Status.CREATING,), Status.AVAILABLE, run.request)
        events.add(tx, "snapshot.end", run.state.snapshot_id, run.request, {"volume": run.state.volume_id})


def as_row(state: SnapshotState) -> Json:
    return {
        "id": state.snapshot_id,
        "name": state.name,
        "project": state.project,
        "volume_id": state.volume_id,
        "description": state.description,
        "size": state.size,
        "status": Status.CREATING,
        "properties": state.properties,
        "created_at": now(),
        "type": state.type,
        "bootable": state.bootable,
        "volume_properties": state.volume_properties,
    }


def failed(tx: Connection, run: SnapshotRun) -> None:
    """Nobody takes it up again: status `error` and the reason."""
    fault.keep(tx, run, (Status.CREATING,), Status.ERROR, "snapshot.error")


FLOW = Flow(
    "snapshot_create",
    SnapshotState,
    CheckSnapshotTask(),
    ReserveSnapshotQuotaTask(),
    SnapshotEntryTask(),
    CommitSnapshotQuotaTask(),
    SnapshotStorageTask(),
    FinishSnapshotTask(),
    on_undone=failed,
)
