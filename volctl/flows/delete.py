"""volume_delete: check, clear the storage, remove the row. Completed, never undone, once storage was touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, images, snapshots, volumes
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError, InUseError, ProtectedError
from volctl.flows import fault
from volctl.flows.context import Context
from volctl.flows.refs import VOLUME_SCHEME
from volctl.model import Json, Object, Status, Volume
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

DELETABLE = (Status.AVAILABLE, Status.ERROR)


@mutable
class DeleteState:
    """`force`: from any `error` status, and the row alone if the backend is no longer configured."""

    volume_id: str
    force: bool = False
    backend: str | None = None
    status: str = ""

    @property
    def object(self) -> Object:
        return Object("volume", self.volume_id)


DeleteRun: TypeAlias = Run[Context, DeleteState]


class DeleteTask(Task[Context, DeleteState]):
    """A task of the delete flow."""


class CheckDeleteTask(DeleteTask):
    """Refuses what is protected, in use, has snapshots or a holder; then status `deleting`."""

    def gather(self, run: DeleteRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            dependents = snapshots.of_volume(tx, volume.id)
            registered = images.at_location(tx, f"{VOLUME_SCHEME}{volume.id}")
        check_deletable(volume, force=state.force)
        if dependents:
            names = ", ".join(snapshot.label for snapshot in dependents)
            raise ConflictError(
                f"volume {volume.label} has snapshots: {names}",
                hint="delete them first, or say --cascade",
                volume=volume.id,
            )
        check_holders(run.env, volume, force=state.force)
        for image in registered:
            run.env.warn(f"image {image.label} is this volume, and goes with it")
        state.backend, state.status = volume.backend, volume.status

    def record(self, tx: Connection, run: DeleteRun) -> None:
        """Looks again: who protects a volume holds no lock."""
        check_deletable(volumes.get(tx, run.state.volume_id), force=run.state.force)
        status = (Status(run.state.status),)
        volumes.transition(tx, run.state.volume_id, status, Status.DELETING, run.request)
        events.add(tx, "delete.start", run.state.volume_id, run.request, {})

    def unrecord(self, tx: Connection, run: DeleteRun) -> None:
        status = Status(run.state.status)
        volumes.transition(tx, run.state.volume_id, (Status.DELETING,), status, run.request)


class DeleteStorageTask(DeleteTask):
    """The backend deletes everything it holds for this volume."""

    def plan(self, run: DeleteRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: DeleteRun) -> None:
        state = run.state
        if state.backend is None or (state.force and not run.env.backends.has(state.backend)):
            return  # never scheduled, or a backend that is no more
        run.env.backends.get(state.backend).delete(state.object)


class DeleteEntryTask(DeleteTask):
    """The row is gone, and with it the use of quota, and the images that were this volume."""

    def record(self, tx: Connection, run: DeleteRun) -> None:
        volumes.remove(tx, run.state.volume_id)
        for image in images.at_location(tx, f"{VOLUME_SCHEME}{run.state.volume_id}"):
            images.remove(tx, image.id)
            events.add(tx, "image.delete", image.id, run.request, {"volume": run.state.volume_id})
        events.add(tx, "delete.end", run.state.volume_id, run.request, {})


def check_deletable(volume: Volume, *, force: bool) -> None:
    """`ProtectedError`, `InUseError`, or `ConflictError` for the wrong status."""
    name = volume.label
    if volume.protected:
        raise ProtectedError(f"volume {name} is protected", hint=f"volctl unprotect {name}", volume=volume.id)
    devices = ", ".join(attachment.device for attachment in volume.attachments if attachment.device)
    if volume.status is Status.IN_USE or devices:
        raise InUseError(f"volume {name} is attached ({devices})", hint=f"volctl detach {name}", volume=volume.id)
    allowed = (*DELETABLE, Status.ERROR_DELETING) if force else DELETABLE
    if volume.status not in allowed:
        hint = "say --force" if volume.status is Status.ERROR_DELETING else None
        raise ConflictError(f"volume {name} is {volume.status}", hint=hint, volume=volume.id)


def check_holders(env: Context, volume: Volume, *, force: bool = False) -> None:
    """`InUseError` if a program, a loop device or a mount has the volume open."""
    if volume.backend is None or (force and not env.backends.has(volume.backend)):
        return
    if holders := env.backends.get(volume.backend).holders(Object("volume", volume.id)):
        raise InUseError(
            f"volume {volume.label} is in use by {', '.join(holders)}",
            hint="stop what uses it first",
            volume=volume.id,
        )


def stuck(tx: Connection, run: DeleteRun) -> None:
    """The storage could not be cleared: `error_deleting`, and the flow is tried again."""
    fault.keep(tx, run, (Status.DELETING, Status.ERROR_DELETING), Status.ERROR_DELETING, "delete.error")


FLOW = Flow(
    "volume_delete",
    DeleteState,
    CheckDeleteTask(),
    DeleteStorageTask(),
    DeleteEntryTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
    beside=fault.BESIDE,
)
