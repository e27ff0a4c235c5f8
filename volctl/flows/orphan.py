"""orphan_delete, device_detach: what `doctor` found without a row goes. device_resume: what waits goes on.

An orphan bears our mark and has no row, or the row of a create that failed, or is a second one beside that
on its row's own backend, or is what work left beside a volume. A stray device is ours, over a volume that
is not attached or over what is gone. Each is completed once it was begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from volctl.backend import Backend
from volctl.db import events, image_cache, snapshots, volumes
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError, Failure, InUseError, VolctlError
from volctl.flows.context import Context
from volctl.flows.fault import UNKNOWN
from volctl.model import Json, Object, Status, Volume
from volctl.records import mutable, record

if TYPE_CHECKING:
    from sqlalchemy import Connection


@mutable
class OrphanState:
    """The object's kind and id, and the volume that a snapshot is of; or the name of a leftover."""

    backend: str
    kind: Literal["volume", "snap", "image"]
    id: str
    volume_id: str
    leftover: str | None = None

    @property
    def object(self) -> Object:
        return Object(self.kind, self.id)


OrphanRun: TypeAlias = Run[Context, OrphanState]


class OrphanTask(Task[Context, OrphanState]):
    """A task of the orphan flow."""


class CheckOrphanTask(OrphanTask):
    """No row counts on it here, and nobody but a device of ours holds it."""

    def gather(self, run: OrphanRun) -> None:
        state, backend = run.state, run.env.backends.get(run.state.backend)
        if state.leftover is not None:
            return
        with run.env.store.read() as tx:
            row = noted(tx, state.object)
        if row and row.counts_on(state.backend):
            raise ConflictError(f"{state.object.name} has a row", volume=state.volume_id)
        if row and (why := doubt(run.env, state.object, row, state.backend)):
            raise ConflictError(f"{state.object.name} may be all there is: {why}", volume=state.volume_id)
        device = backend.attached(state.object) or backend.listing().devices.get(state.object)
        holders = [who for who in backend.holders(state.object) if not (device and who.startswith(device.device))]
        if holders:
            raise InUseError(f"{state.object.name} is in use by {', '.join(holders)}", hint="stop what uses it first")


class DeleteOrphanTask(OrphanTask):
    """The backend deletes it. A device that somebody has open is left, and all of it then."""

    def plan(self, run: OrphanRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.leftover or run.state.object.name}

    def execute(self, run: OrphanRun) -> None:
        state, backend = run.state, run.env.backends.get(run.state.backend)
        if state.leftover is not None:
            backend.clear(state.leftover)
            return
        if state.kind == "snap":
            backend.delete_snapshot(Object("volume", state.volume_id), state.object)
            return
        _detach(backend, state.object)
        backend.delete(state.object)


class ForgetOrphanTask(OrphanTask):
    """The event, and the row of a snapshot whose volume has none."""

    def record(self, tx: Connection, run: OrphanRun) -> None:
        state = run.state
        if state.kind == "snap" and volumes.find(tx, state.volume_id) is None:
            snapshots.remove(tx, state.id)
        name = state.leftover or state.object.name
        events.add(tx, "orphan.deleted", state.id, run.request, {"backend": state.backend, "object": name})


class DetachStrayTask(OrphanTask):
    """The backend takes its device away; one that is held is left as it is."""

    def plan(self, run: OrphanRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: OrphanRun) -> None:
        _detach(run.env.backends.get(run.state.backend), run.state.object)

    def record(self, tx: Connection, run: OrphanRun) -> None:
        events.add(tx, "device.detached", run.state.id, run.request, {"backend": run.state.backend})


class ResumeDeviceTask(OrphanTask):
    """The backend lets the device of an attached volume go on, as it is."""

    def plan(self, run: OrphanRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: OrphanRun) -> None:
        state, backend = run.state, run.env.backends.get(run.state.backend)
        if found := backend.attached(state.object):
            backend.attach(state.object, read_only=found.read_only, sector_size=found.sector_size)

    def record(self, tx: Connection, run: OrphanRun) -> None:
        events.add(tx, "device.resumed", run.state.id, run.request, {"backend": run.state.backend})


@record
class Noted:
    """What the rows say of an object; `never`: it is of a create that failed, and never was anything."""

    backend: str | None
    size: int
    never: bool = False

    def counts_on(self, backend: str) -> bool:
        return self.backend == backend and not self.never


def noted(tx: Connection, target: Object) -> Noted | None:
    """None without a row; a snapshot has none where its volume has none."""
    if target.kind == "image":
        entry = image_cache.find(tx, target.id)
        return Noted(entry.backend, entry.size) if entry else None
    snapshot = snapshots.find(tx, target.id) if target.kind == "snap" else None
    if target.kind == "snap" and snapshot is None:
        return None
    volume = volumes.find(tx, snapshot.volume_id if snapshot else target.id)
    if volume is None:
        return None
    return Noted(volume.backend, (snapshot or volume).size, snapshot is None and never_was(volume))


def never_was(volume: Volume) -> bool:
    """Did its create fail, as far as the rows know? An older database may know less than there is (`is_whole`)."""
    return is_unborn(volume) and (volume.fault is None or volume.fault.code != UNKNOWN)


def is_unborn(volume: Volume) -> bool:
    """In `error` since before it was ever available."""
    return volume.status is Status.ERROR and volume.available_at is None


def is_whole(backend: Backend, target: Object, size: int) -> bool:
    """Was it made to the end, by its own word?"""
    if not backend.capabilities.carried_when_whole or (found := backend.inspect(target)) is None or found.size != size:
        return False
    return any(each == target and each.about is not None for each in backend.described())


def doubt(env: Context, target: Object, row: Noted, backend: str) -> str | None:
    """Why an object that does not count on `backend` by its row may be all there is of it.

    A backend may have another name now, or a create that failed may have ended well since the rows were saved.
    None only if it was never whole, or if the row's own backend was seen and holds it.
    """
    if row.never:
        return "it is whole" if is_whole(env.backends.get(backend), target, row.size) else None
    if not env.backends.has(row.backend):
        said = f"on backend {row.backend}, which is not in the configuration" if row.backend else "on no backend"
        return f"its row says that it is {said}"
    try:
        found = env.backends.get(row.backend).inspect(target)
    except Failure as error:
        return f"its row says that it is on backend {row.backend}, which cannot be seen: {error.message}"
    if found is None or found.size != row.size:
        return f"its row says that it is on backend {row.backend}, which does not hold it"
    return None


def _detach(backend: Backend, target: Object) -> None:
    try:
        backend.detach(target)
    except VolctlError as error:
        error.untouched = True
        raise


DETACH = Flow("device_detach", OrphanState, DetachStrayTask(), direction=Direction.COMPLETE)
RESUME = Flow("device_resume", OrphanState, ResumeDeviceTask(), direction=Direction.COMPLETE)
DELETE = Flow(
    "orphan_delete",
    OrphanState,
    CheckOrphanTask(),
    DeleteOrphanTask(),
    ForgetOrphanTask(),
    direction=Direction.COMPLETE,
)
