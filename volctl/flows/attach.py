"""volume_attach and volume_detach: a volume as a block device.

An attach that fails or dies is undone, a detach that died is completed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

from volctl.db import events, volumes
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import BackendError, ConflictError, UsageError, VolctlError
from volctl.flows.attached import DETACHABLE, without_device
from volctl.flows.context import Context
from volctl.flows.delete import check_holders
from volctl.model import Attachment, Json, Object, Status, now
from volctl.records import mutable

if TYPE_CHECKING:
    from sqlalchemy import Connection

ATTACHABLE = (Status.AVAILABLE, Status.IN_USE)


@mutable
class AttachState:
    """How to attach; `sector_size` in bytes, None for the backend's. `device` and `actual` as it became."""

    volume_id: str
    read_only: bool = False
    sector_size: int | None = None
    backend: str | None = None
    device: str | None = None
    actual: int | None = None

    @property
    def object(self) -> Object:
        return Object("volume", self.volume_id)


AttachRun: TypeAlias = Run[Context, AttachState]


class AttachTask(Task[Context, AttachState]):
    """A task of the attach and detach flows."""


class CheckAttachTask(AttachTask):
    """The volume is available (or its device is gone), nobody holds it, the backend has such sectors."""

    def gather(self, run: AttachRun) -> None:
        state, env = run.state, run.env
        with env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
        if volume.status not in ATTACHABLE:
            raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
        check_holders(env, volume)
        state.backend = volume.backend
        known = env.backends.get(volume.backend).capabilities.sector_sizes
        if state.sector_size is not None and state.sector_size not in known:
            sizes = f"sectors of {' or '.join(map(str, known))} bytes" if known else "the sectors of its disks"
            raise UsageError(f"backend {volume.backend} has {sizes}, not of {state.sector_size}", volume=volume.id)


class AttachDeviceTask(AttachTask):
    """The backend makes the device. Undone, it takes it away."""

    def plan(self, run: AttachRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: AttachRun) -> None:
        state = run.state
        backend = run.env.backends.get(state.backend)
        state.device = backend.attach(state.object, read_only=state.read_only, sector_size=state.sector_size)
        found = backend.attached(state.object, state.device)
        if found is None or (found.device, found.read_only) != (state.device, state.read_only):
            raise BackendError(f"backend {state.backend} made {state.device}, but the system has {found or 'nothing'}")
        state.actual = found.sector_size

    def revert(self, run: AttachRun) -> None:
        run.env.backends.get(run.state.backend).detach(run.state.object)


class FinishAttachTask(AttachTask):
    """Status `in-use`, and the attachment."""

    def record(self, tx: Connection, run: AttachRun) -> None:
        state = run.state
        attachment = asdict(Attachment(state.device, state.read_only, now(), state.actual))
        volumes.transition(tx, state.volume_id, ATTACHABLE, Status.IN_USE, run.request, attachments=[attachment])
        events.add(tx, "attach.end", state.volume_id, run.request, attachment)


class CheckDetachTask(AttachTask):
    """No other flow is in the middle of something with it."""

    def gather(self, run: AttachRun) -> None:
        with run.env.store.read() as tx:
            volume = volumes.get(tx, run.state.volume_id)
        if volume.status not in DETACHABLE:
            raise ConflictError(f"volume {volume.label} is {volume.status}", volume=volume.id)
        run.state.backend = volume.backend


class DetachDeviceTask(AttachTask):
    """The backend takes the device away; one that is still there, being held, is left as it was."""

    def plan(self, run: AttachRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: AttachRun) -> None:
        state = run.state
        backend = run.env.backends.get(state.backend)
        try:
            backend.detach(state.object)
        except VolctlError as error:
            error.untouched = backend.attached(state.object) is not None
            error.volume = error.volume or state.volume_id
            raise


class FinishDetachTask(AttachTask):
    """Available again; one in `error` stays there."""

    def record(self, tx: Connection, run: AttachRun) -> None:
        volume_id = run.state.volume_id
        after = without_device(volumes.get(tx, volume_id).status)
        volumes.transition(tx, volume_id, DETACHABLE, after, run.request, attachments=[])
        events.add(tx, "detach.end", volume_id, run.request, {})


ATTACH = Flow("volume_attach", AttachState, CheckAttachTask(), AttachDeviceTask(), FinishAttachTask())
DETACH = Flow(
    "volume_detach",
    AttachState,
    CheckDetachTask(),
    DetachDeviceTask(),
    FinishDetachTask(),
    direction=Direction.COMPLETE,
)
