"""Queries on limits, use and reservations. Use is a sum over live rows, never a counter."""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, func, insert, select

from volctl.db import sums
from volctl.db.tables import quotas, reservations, snapshots, volumes
from volctl.model import Json
from volctl.records import record


@record
class Usage:
    """Counts, and `gigabytes` in bytes."""

    volumes: int = 0
    snapshots: int = 0
    gigabytes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.volumes + other.volumes, self.snapshots + other.snapshots, self.gigabytes + other.gigabytes)

    def __sub__(self, other: Usage) -> Usage:
        return self + Usage(-other.volumes, -other.snapshots, -other.gigabytes)


def limits(tx: Connection, project: str) -> dict[str, int]:
    """Limits that were set for this project, by resource; of gigabytes in GiB."""
    query = select(quotas.c.resource, quotas.c.limit).where(quotas.c.project == project)
    return {row.resource: row.limit for row in tx.execute(query)}


def set_limit(tx: Connection, project: str, resource: str, limit: int) -> None:
    tx.execute(delete(quotas).where(quotas.c.project == project, quotas.c.resource == resource))
    tx.execute(insert(quotas), {"project": project, "resource": resource, "limit": limit})


def used(tx: Connection, project: str, type_name: str | None, *, snapshot_gigabytes: bool) -> Usage:
    """The sum over live rows (of one type, if named), less those whose own reservation is open."""
    volume_count, volume_bytes = _sum(tx, volumes, project, type_name)
    snapshot_count, snapshot_bytes = _sum(tx, snapshots, project, type_name)
    return Usage(volume_count, snapshot_count, volume_bytes + (snapshot_bytes if snapshot_gigabytes else 0))


def _sum(tx: Connection, table: Table, project: str, type_name: str | None) -> tuple[int, int]:
    pending = select(reservations.c.object_id).where(
        reservations.c.project == project, reservations.c.object_id.is_not(None)
    )
    query = select(func.count(), *sums.parts(table.c.size)).where(
        table.c.project == project, table.c.id.not_in(pending)
    )
    if type_name is not None:
        query = query.where(table.c.type == type_name)
    row = tx.execute(query).one()
    return int(row[0]), sums.whole(row[1], row[2])


def reserved(tx: Connection, project: str, type_name: str | None) -> Usage:
    """The sum over open reservations."""
    counts = (func.coalesce(func.sum(reservations.c[name]), 0) for name in ("volumes", "snapshots"))
    query = select(*counts, *sums.parts(reservations.c.gigabytes)).where(reservations.c.project == project)
    if type_name is not None:
        query = query.where(reservations.c.type == type_name)
    row = tx.execute(query).one()
    return Usage(int(row[0]), int(row[1]), sums.whole(row[2], row[3]))


def forget_type(tx: Connection, type_name: str) -> None:
    """A type is gone, and its limits with it, of every project."""
    of_type = [f"{resource}_{type_name}" for resource in ("volumes", "gigabytes", "snapshots")]
    tx.execute(delete(quotas).where(quotas.c.resource.in_(of_type)))


def open_reservations(tx: Connection) -> set[str]:
    """Their ids, of every project."""
    return set(tx.execute(select(reservations.c.id)).scalars())


def reserve(tx: Connection, row: Json) -> None:
    tx.execute(insert(reservations), row)


def release(tx: Connection, reservation: str | None) -> None:
    tx.execute(delete(reservations).where(reservations.c.id == reservation))
