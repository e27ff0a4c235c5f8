"""volume_extend: reserve the difference, grow the storage, commit."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import field
from typing import TYPE_CHECKING, TypeAlias

from volctl import interrupt
from volctl.db import events, quotas, types, volumes
from volctl.db.quotas import Usage
from volctl.engine.running import Run
from volctl.engine.task import Direction, Flow, Task
from volctl.errors import ConflictError, NoBackendError, UsageError, VolctlError
from volctl.flows import fault, pools, sizes
from volctl.flows.context import Context
from volctl.flows.delete import check_holders
from volctl.model import MAX_SIZE, Json, Object, Status, format_size, round_up
from volctl.records import mutable
from volctl.scheduler import Request, choose, size_bounds

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from volctl.backend import Backend

WORKING = (Status.EXTENDING, Status.ERROR)
"""Its status while the flow is under way, or stuck."""


@mutable
class ExtendState:
    """`size` is the new size, `before` the present one, in bytes. With `by`, `size` is added to it.

    `status` is the one that it has before and after.
    """

    volume_id: str
    size: int
    by: bool = False
    before: int = 0
    backend: str | None = None
    project: str = ""
    type: str | None = None
    specs: dict[str, str] = field(default_factory=dict)
    reservation: str | None = None
    status: str = Status.AVAILABLE

    @property
    def object(self) -> Object:
        return Object("volume", self.volume_id)


ExtendRun: TypeAlias = Run[Context, ExtendState]


class ExtendTask(Task[Context, ExtendState]):
    """A task of the extend flow."""


class CheckExtendTask(ExtendTask):
    """The volume is attached, or available and nobody holds it; the size is larger, type and backend take it."""

    def gather(self, run: ExtendRun) -> None:
        state, env = run.state, run.env
        with env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            found = types.find(tx, volume.type) if volume.type else None
        if volume.status not in (Status.AVAILABLE, Status.IN_USE):
            raise ConflictError(f"volume {volume.label} is {volume.status}, not available", volume=volume.id)
        state.status, state.before, state.backend = volume.status, volume.size, volume.backend
        state.project, state.type, state.specs = volume.project, volume.type, found.specs if found else {}
        if volume.status is Status.AVAILABLE:
            check_holders(env, volume)
        run.found = pools.survey(env)
        backend = env.backends.get(volume.backend)
        wanted = state.size + volume.size if state.by else state.size
        state.size, state.by = round_up(wanted, backend.capabilities.granule), False
        _check_size(state)
        _check_there(backend, state)

    def record(self, tx: Connection, run: ExtendRun) -> None:
        state = run.state
        quota = run.env.quota(state.project)
        quota.check_size(tx, state.size)
        _check_room(tx, run)
        growth = Usage(gigabytes=state.size - state.before)
        state.reservation = quota.reserve(tx, growth, state.type, None)
        volumes.transition(tx, state.volume_id, (Status(state.status),), Status.EXTENDING, run.request)
        events.add(tx, "extend.start", state.volume_id, run.request, {"from": state.before, "to": state.size})

    def unrecord(self, tx: Connection, run: ExtendRun) -> None:
        quotas.release(tx, run.state.reservation)
        volumes.transition(tx, run.state.volume_id, WORKING, _after(tx, run), run.request, fault=None)


class ExtendStorageTask(ExtendTask):
    """The backend grows the volume, and its device if it is attached.

    A failure that left the old size is undone, any other is completed.
    """

    def plan(self, run: ExtendRun) -> Json:
        return {"backend": run.state.backend, "object": run.state.object.name}

    def execute(self, run: ExtendRun) -> None:
        state = run.state
        backend = run.env.backends.get(state.backend)
        try:
            backend.extend(state.object, state.size)
            backend.resize_device(state.object)
        except VolctlError as error:
            error.untouched = _is_as_before(backend, state)
            raise


class ExtendEntryTask(ExtendTask):
    """The new size in the row instead of the reservation."""

    def record(self, tx: Connection, run: ExtendRun) -> None:
        state = run.state
        quotas.release(tx, state.reservation)
        volumes.transition(tx, state.volume_id, WORKING, _after(tx, run), run.request, size=state.size, fault=None)
        events.add(tx, "extend.end", state.volume_id, run.request, {"size": state.size})


def _is_as_before(backend: Backend, state: ExtendState) -> bool:
    """Seen to be so: a look that fails, or for which no time is left, says nothing and hides no other error."""
    with suppress(VolctlError), interrupt.undoing():
        found = backend.inspect(state.object)
        return found is not None and found.size == state.before
    return False


def _after(tx: Connection, run: ExtendRun) -> Status:
    """What it was before, unless it was detached while the flow was stuck."""
    return Status(run.state.status) if volumes.get(tx, run.state.volume_id).attachments else Status.AVAILABLE


def _check_size(state: ExtendState) -> None:
    if state.size <= state.before:
        raise UsageError(
            f"the volume has {format_size(state.before)} ({state.before} bytes) already; it can only grow",
            details={"size": state.before, "requested": state.size},
        )
    if state.size > MAX_SIZE:
        raise UsageError("the largest size is 8 EiB - 1")
    _, high = size_bounds(state.specs)
    if high is not None and state.size > high:
        raise UsageError(f"type {state.type!r} takes volumes of at most {format_size(high)}")


def _check_there(backend: Backend, state: ExtendState) -> None:
    """Cut, its tail would become zeros; that somebody grew it is no harm, but it cannot shrink."""
    there = sizes.found(backend, state.object, state.before)
    if there < state.before:
        raise sizes.differs(state.object, there, state.before)
    if there > state.size:
        said = f"{state.object.name} has {there} bytes already, more than the {state.size} asked for"
        raise ConflictError(said, hint=sizes.ADVICE, volume=state.volume_id)


def _check_room(tx: Connection, run: ExtendRun) -> None:
    """What CapacityFilter says of the growth on the volume's own backend."""
    state = run.state
    request = Request(size=state.size - state.before, specs=state.specs, backend=state.backend, type=state.type)
    mine = [pool for pool in pools.pools(tx, run.found) if pool.name == state.backend]
    explanation = choose(mine, request, pools.only_capacity())
    if explanation.chosen is None:
        raise NoBackendError(pools.no_backend(explanation))


def stuck(tx: Connection, run: ExtendRun) -> None:
    """Neither the old nor the new size is sure: `error`, until the flow is tried again."""
    fault.keep(tx, run, WORKING, Status.ERROR)
    quotas.release(tx, run.state.reservation)


FLOW = Flow(
    "volume_extend",
    ExtendState,
    CheckExtendTask(),
    ExtendStorageTask(),
    ExtendEntryTask(),
    direction=Direction.COMPLETE,
    on_stuck=stuck,
    beside=fault.BESIDE,
)
