"""volume_create_manager: fresh row, reschedule on failure, spec, notify, create, finish.

Source of names and order: cinder/volume/flows/manager/create_volume.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import events, image_cache, snapshots, volumes
from volctl.engine.task import Flow
from volctl.errors import ConflictError, NotFoundError
from volctl.flows import about, sources
from volctl.flows.create import IN_FLIGHT, CreateRun, CreateState, CreateTask, fail_volume
from volctl.model import Json, SourceKind, Status, now

if TYPE_CHECKING:
    from sqlalchemy import Connection


class ExtractVolumeRefTask(CreateTask):
    """Reads the volume afresh: it must still be ours and `creating`. A clone joins the tree of its source.

    The row says so before there is storage, so nobody works on shared files without the tree's lock.
    """

    def gather(self, run: CreateRun) -> None:
        state, source = run.state, run.state.source["volume_id"]
        shares = source is not None and state.source_backend == state.backend
        if shares and run.env.backends.get(state.backend).capabilities.shared_layers:
            with run.env.store.read() as tx:
                state.tree = volumes.column(tx, source, "tree") or source
        else:
            state.tree = None

    def record(self, tx: Connection, run: CreateRun) -> None:
        volume = volumes.get(tx, run.state.volume_id)
        if volume.status not in IN_FLIGHT or volume.backend != run.state.backend:
            raise ConflictError(f"volume {volume.id} is {volume.status} on {volume.backend}", volume=volume.id)
        volumes.change(tx, volume.id, tree=run.state.tree)


class OnFailureRescheduleTask(CreateTask):
    """Nothing going forward. Undone, it casts the scheduler again without this backend, if that may help.

    It is older than the task that touches storage, so what that left on this backend is gone by then.
    """

    def unrecord(self, tx: Connection, run: CreateRun) -> None:
        state, cause = run.state, run.cause
        if cause is None or cause.erase:
            return
        failure = {"backend": state.backend, "error": cause.message, "code": cause.code}
        state.failures.append(failure)
        attempts = [{"backend": item["backend"], "error": item["error"]} for item in state.failures]
        volumes.change(tx, state.volume_id, attempts=attempts, promised=0)
        if run.forgiving and len(state.failures) < state.max_attempts:
            volumes.transition(tx, state.volume_id, IN_FLIGHT, Status.CREATING, run.request, backend=None)
            run.cast("volume_create_scheduler", state)


class ExtractVolumeSpecTask(CreateTask):
    """Decides the branch (blank, snapshot, volume, image) and sees that its source is there."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        state = run.state
        if state.kind is SourceKind.SNAPSHOT and snapshots.find(tx, state.source["id"]) is None:
            raise NotFoundError(f"snapshot {state.source['id']} is gone")
        if state.source["volume_id"] is not None:
            volumes.get(tx, state.source["volume_id"])
        if state.image is not None:
            volumes.transition(tx, state.volume_id, IN_FLIGHT, Status.DOWNLOADING, run.request)


class NotifyVolumeActionTask(CreateTask):
    """Event `create.start`."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        state = run.state
        payload = {"size": state.size, "backend": state.backend, "source": state.kind}
        events.add(tx, "create.start", state.volume_id, run.request, payload)


class CreateVolumeFromSpecTask(CreateTask):
    """Calls the backend. Undone, it deletes everything the backend may hold for this volume."""

    def plan(self, run: CreateRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: CreateRun) -> None:
        run.state.about = about.volume(run.env, run.state.volume_id).about
        sources.fill(run)
        run.state.about = None  # it is with the object

    def revert(self, run: CreateRun) -> None:
        run.env.backends.get(run.state.backend).delete(run.state.object)

    def record(self, tx: Connection, run: CreateRun) -> None:
        volumes.change(tx, run.state.volume_id, promised=0)
        if run.state.cached is not None:
            image_cache.touch(tx, run.state.cached)


class CreateVolumeOnFinishTask(CreateTask):
    """Status `available`, times, event `create.end`."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        state = run.state
        volumes.transition(tx, state.volume_id, IN_FLIGHT, Status.AVAILABLE, run.request, available_at=now())
        events.add(tx, "create.end", state.volume_id, run.request, {"size": state.size, "backend": state.backend})


FLOW = Flow(
    "volume_create_manager",
    CreateState,
    ExtractVolumeRefTask(),
    OnFailureRescheduleTask(),
    ExtractVolumeSpecTask(),
    NotifyVolumeActionTask(),
    CreateVolumeFromSpecTask(),
    CreateVolumeOnFinishTask(),
    on_undone=fail_volume,
)
