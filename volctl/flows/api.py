"""volume_create_api: validate, reserve quota, make the row, commit the quota, cast.

Source of names and order: cinder/volume/flows/api/create_volume.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from volctl.db import events, quotas, volumes
from volctl.db.quotas import Usage
from volctl.engine.task import Flow
from volctl.errors import ExistsError, NotFoundError
from volctl.flows import request
from volctl.flows.create import CreateRun, CreateState, CreateTask
from volctl.model import Status

if TYPE_CHECKING:
    from sqlalchemy import Connection


class ExtractVolumeRequestTask(CreateTask):
    """Validates the request (SPEC, section 3) and resolves type, source, size and availability zone."""

    def gather(self, run: CreateRun) -> None:
        request.resolve(run.env, run.state)


class QuotaReserveTask(CreateTask):
    """Checks the limits and reserves one volume of this size."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        state = run.state
        quota = run.env.quota(state.project)
        quota.check_size(tx, state.size)
        asked = Usage(volumes=1, gigabytes=state.size)
        state.reservation = quota.reserve(tx, asked, state.type, state.volume_id)

    def unrecord(self, tx: Connection, run: CreateRun) -> None:
        quotas.release(tx, run.state.reservation)


class EntryCreateTask(CreateTask):
    """Inserts the row, status `creating`, backend empty."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        from sqlalchemy.exc import IntegrityError

        try:
            volumes.insert_row(tx, request.as_row(run.state))
        except IntegrityError as error:
            if "FOREIGN KEY" in str(error.orig):
                raise NotFoundError(f"there is no volume type {run.state.type!r} any more") from error
            raise ExistsError(f"there is a volume {run.state.name!r} already") from error
        change = {"from": None, "to": Status.CREATING}
        events.add(tx, "volume.status", run.state.volume_id, run.request, change)

    def unrecord(self, tx: Connection, run: CreateRun) -> None:
        volumes.remove(tx, run.state.volume_id)


class QuotaCommitTask(CreateTask):
    """Turns the reservation into use: the row is summed from here on, so the reservation goes.

    Taken back by the removal of the row, for use is the sum over rows.
    """

    def record(self, tx: Connection, run: CreateRun) -> None:
        quotas.release(tx, run.state.reservation)


class VolumeCastTask(CreateTask):
    """Casts the scheduler flow, as a row of this transaction."""

    def record(self, tx: Connection, run: CreateRun) -> None:
        run.cast("volume_create_scheduler", run.state)


FLOW = Flow(
    "volume_create_api",
    CreateState,
    ExtractVolumeRequestTask(),
    QuotaReserveTask(),
    EntryCreateTask(),
    QuotaCommitTask(),
    VolumeCastTask(),
)
