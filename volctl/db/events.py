"""What happened, in order: status changes and the beginnings and ends of work."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select

from volctl.db.tables import events
from volctl.model import Event, Json, now


def add(tx: Connection, kind: str, object_id: str, request: str, payload: Json) -> None:
    """`kind` is such as `create.start` or `volume.status`."""
    row = {"time": now(), "type": kind, "object": object_id, "request": request, "payload": payload}
    tx.execute(insert(events), row)


def listing(tx: Connection, object_id: str | None, after: int, limit: int | None) -> list[Event]:
    """Oldest first, with numbers above `after`."""
    query = select(events).where(events.c.id > after).order_by(events.c.id).limit(limit)
    if object_id is not None:
        query = query.where(events.c.object == object_id)
    return [Event(**row) for row in tx.execute(query).mappings()]


def latest_object(tx: Connection, prefix: str) -> list[str]:
    """Ids beginning with `prefix` that had events, also those of objects that are gone."""
    query = select(events.c.object).where(events.c.object >= prefix, events.c.object < prefix + "g").distinct().limit(3)
    return list(tx.scalars(query))


def prune(tx: Connection, before: str) -> None:
    tx.execute(delete(events).where(events.c.time < before))


def has_older(tx: Connection, before: str) -> bool:
    return tx.execute(select(events.c.id).where(events.c.time < before).limit(1)).first() is not None
