"""volume_create_scheduler: complete the spec, filter and weigh the backends, cast.

Source of names and order: cinder/scheduler/flows/create_volume.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import image_cache, types, volumes
from volctl.db.quotas import Usage
from volctl.engine.task import Flow
from volctl.errors import ConflictError, UsageError
from volctl.flows import pools
from volctl.flows.create import IN_FLIGHT, CreateRun, CreateState, CreateTask, fail_volume
from volctl.model import MAX_SIZE, format_size, round_up, to_json
from volctl.scheduler import size_bounds

if TYPE_CHECKING:
    from sqlalchemy import Connection


class ExtractSchedulerSpecTask(CreateTask):
    """Completes a partial request spec from the volume row and its type."""

    def gather(self, run: CreateRun) -> None:
        state = run.state
        with run.env.store.read() as tx:
            volume = volumes.get(tx, state.volume_id)
            if volume.status not in IN_FLIGHT:
                raise ConflictError(f"volume {volume.id} is {volume.status}, not creating", volume=volume.id)
            state.size, state.type = volume.size, volume.type
            found = types.find(tx, volume.type) if volume.type else None
            state.specs = found.specs if found else {}


class ScheduleCreateVolumeTask(CreateTask):
    """Filters and weighs; writes the backend and the whole explanation to the volume; casts the manager."""

    def gather(self, run: CreateRun) -> None:
        with run.env.store.read() as tx:
            cached = bool(image_cache.sizes_by_backend(tx))
        if cached:
            from volctl.flows import cache

            run.found = cache.survey(run)
        else:
            run.found = pools.survey(run.env)

    def record(self, tx: Connection, run: CreateRun) -> None:
        state = run.state
        found: pools.Survey = run.found
        explanation = pools.choose(tx, run.env, found, state)
        if explanation.chosen is None:
            raise pools.refusal(explanation, state)
        state.backend = explanation.chosen
        size = round_up(state.size, found.granule(state.backend))
        if size != state.size:
            _check_rounded(tx, run, size)
            state.size = size
        volumes.change(
            tx,
            state.volume_id,
            size=size,
            backend=state.backend,
            availability_zone=found.zone(state.backend),
            explanation=to_json(explanation),
            promised=pools.promise(tx, found, state),
        )
        if warning := found.nearly_full(state.backend):
            run.env.warn(warning)
        run.cast("volume_create_manager", state)


def _check_rounded(tx: Connection, run: CreateRun, size: int) -> None:
    """What held for the size that was asked for holds for what the backend makes of it."""
    state, quota = run.state, run.env.quota(run.state.project)
    quota.check_size(tx, size)
    quota.check(tx, Usage(gigabytes=size - state.size), state.type)
    most = size_bounds(state.specs)[1] or MAX_SIZE
    if size > most:
        said = f"backend {state.backend} makes {format_size(size)} of {format_size(state.size)}"
        raise UsageError(f"{said}, and volumes have {format_size(most)} at most")


def not_scheduled(tx: Connection, run: CreateRun) -> None:
    """No backend: the volume goes to `error`, and the explanation is kept."""
    explanation = getattr(run.error, "details", {}).get("explanation")
    if explanation is not None and volumes.find(tx, run.state.volume_id):
        volumes.change(tx, run.state.volume_id, explanation=explanation)
    fail_volume(tx, run)


FLOW = Flow(
    "volume_create_scheduler",
    CreateState,
    ExtractSchedulerSpecTask(),
    ScheduleCreateVolumeTask(),
    on_undone=not_scheduled,
)
