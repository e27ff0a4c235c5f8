"""Queries on snapshots. Every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from volctl.db import status
from volctl.db.made import of_cells
from volctl.db.tables import snapshots
from volctl.errors import NotFoundError
from volctl.model import Fault, Json, Snapshot, Status

_INTERNAL = {"type", "bootable", "volume_properties", "undescribed"}
_COLUMNS = [column for column in snapshots.c if column.name not in _INTERNAL]


@of_cells
def as_snapshot(row: RowMapping) -> Snapshot:
    fields = {key: value for key, value in row.items() if key not in _INTERNAL}
    fields["status"] = Status(row["status"])
    fields["fault"] = Fault(**row["fault"]) if row["fault"] else None
    return Snapshot(**fields)


def insert_row(tx: Connection, row: Json) -> None:
    """A new row; `sqlalchemy.exc.IntegrityError` when the name is taken."""
    tx.execute(insert(snapshots), row)


def get(tx: Connection, snapshot_id: str) -> Snapshot:
    """`NotFoundError` if there is none."""
    if (found := find(tx, snapshot_id)) is None:
        raise NotFoundError(f"snapshot {snapshot_id} is gone")
    return found


def find(tx: Connection, snapshot_id: str) -> Snapshot | None:
    row = tx.execute(select(*_COLUMNS).where(snapshots.c.id == snapshot_id)).mappings().one_or_none()
    return as_snapshot(row) if row else None


def origin(tx: Connection, snapshot_id: str) -> Json:
    """What the volume was when the snapshot was taken: type, bootable, properties."""
    columns = (snapshots.c.type, snapshots.c.bootable, snapshots.c.volume_properties)
    row = tx.execute(select(*columns).where(snapshots.c.id == snapshot_id)).one()
    return {"type": row[0], "bootable": row[1], "properties": row[2]}


def by_name(tx: Connection, project: str, name: str) -> Snapshot | None:
    query = select(*_COLUMNS).where(snapshots.c.project == project, snapshots.c.name == name)
    row = tx.execute(query).mappings().one_or_none()
    return as_snapshot(row) if row else None


def by_prefix(tx: Connection, prefix: str) -> list[Snapshot]:
    query = select(*_COLUMNS).where(snapshots.c.id >= prefix, snapshots.c.id < prefix + "g").limit(10)
    return [as_snapshot(row) for row in tx.execute(query).mappings()]


def of_volume(tx: Connection, volume_id: str) -> list[Snapshot]:
    """Oldest first."""
    query = select(*_COLUMNS).where(snapshots.c.volume_id == volume_id).order_by(snapshots.c.created_at)
    return [as_snapshot(row) for row in tx.execute(query).mappings()]


def listing(
    tx: Connection, *, project: str | None, equal: dict[str, str], sort: str, descending: bool
) -> list[Snapshot]:
    query = select(*_COLUMNS)
    if project is not None:
        query = query.where(snapshots.c.project == project)
    for name, value in equal.items():
        query = query.where(snapshots.c[name] == value)
    order = (snapshots.c[sort], snapshots.c.id)
    query = query.order_by(*(key.desc() if descending else key for key in order))
    return [as_snapshot(row) for row in tx.execute(query).mappings()]


def transition(
    tx: Connection, snapshot_id: str, source: Iterable[Status], target: Status, request: str, **values: Any
) -> None:
    """Compare and set the status, with the event that says so. `ConflictError` if it was another."""
    status.transition(tx, snapshots, snapshot_id, source, target, request, **values)


def change(tx: Connection, snapshot_id: str, **values: Any) -> None:
    tx.execute(update(snapshots).where(snapshots.c.id == snapshot_id).values(**values))


def remove(tx: Connection, snapshot_id: str) -> None:
    tx.execute(delete(snapshots).where(snapshots.c.id == snapshot_id))
