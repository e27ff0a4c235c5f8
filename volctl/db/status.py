"""The status of a volume or a snapshot. It is compared and set, never only set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Table, select, update

from volctl.db import events
from volctl.db.made import of_cells
from volctl.errors import ConflictError
from volctl.model import Status, now

_status = of_cells(Status)


def find(tx: Connection, table: Table, object_id: str) -> Status | None:
    """None if the row is gone."""
    found = tx.execute(select(table.c.status).where(table.c.id == object_id)).scalar_one_or_none()
    return None if found is None else _status(found)


def transition(
    tx: Connection, table: Table, object_id: str, source: Iterable[Status], target: Status, request: str, **values: Any
) -> None:
    """Set the status and `values`, with the event that says so. `ConflictError` if it was none of `source`."""
    found, noun = find(tx, table, object_id), table.name.removesuffix("s")
    if found not in set(source):
        raise ConflictError(f"{noun} {object_id} is {found or 'gone'}", volume=object_id if noun == "volume" else None)
    times = {"updated_at": now()} if "updated_at" in table.c else {}
    tx.execute(update(table).where(table.c.id == object_id).values(status=target, **times, **values))
    if found != target:
        events.add(tx, f"{noun}.status", object_id, request, {"from": found, "to": target})
