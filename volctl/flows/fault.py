"""The rows of an object whose flow failed for good, or is kept to be tried again: a status, and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from volctl.db import events, status, tables
from volctl.engine.running import Run
from volctl.flows.context import Context
from volctl.model import Object, Status

if TYPE_CHECKING:
    from sqlalchemy import Connection

BESIDE = ("volume_attach", "volume_detach", "device_detach", "device_resume", "image_save")
"""Flows that leave a volume's storage as it is: one that is stuck in changing it still has to be completed."""
UNKNOWN = "unknown"
"""The code of a fault in a backup: what was under way has ended since, and may have ended well."""
TABLES = {"volume": tables.volumes, "snap": tables.snapshots}


class OfObject(Protocol):
    """A flow's state that is about one volume or snapshot."""

    @property
    def object(self) -> Object: ...


S = TypeVar("S", bound=OfObject)


def keep(
    tx: Connection,
    run: Run[Context, S],
    working: Sequence[Status],
    failed: Status,
    event: str | None = None,
    **values: Any,
) -> None:
    """From a `working` status to `failed`, with the fault; an object that is gone, or in another status, stays."""
    target, cause = run.state.object, run.cause
    table = TABLES[target.kind]
    if cause is None or status.find(tx, table, target.id) not in working:
        return
    fault = {"code": cause.code, "message": cause.message}
    status.transition(tx, table, target.id, working, failed, run.request, fault=fault, **values)
    if event:
        events.add(tx, event, target.id, run.request, fault)
