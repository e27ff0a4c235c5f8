"""Queries on volumes. Every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, func, insert, select, update

from volctl.db import status, sums
from volctl.db.made import of_cells
from volctl.db.tables import volumes
from volctl.errors import NotFoundError
from volctl.model import (
    Attachment,
    Attempt,
    Explanation,
    Fault,
    Json,
    Source,
    SourceKind,
    Status,
    Verdict,
    Volume,
    VolumeDetails,
    now,
)

_UNSHOWN = {"requested", "explanation", "promised", "tree", "undescribed"}
_INTERNAL = {*_UNSHOWN, "source_kind", "source_id", "source_name"}
_COLUMNS = [column for column in volumes.c if column.name not in _UNSHOWN]


@of_cells
def as_volume(row: RowMapping) -> Volume:
    return Volume(**_fields(row))


def _fields(row: RowMapping) -> Json:
    fields = {key: value for key, value in row.items() if key not in _INTERNAL}
    fields["status"] = Status(row["status"])
    fields["fault"] = Fault(**row["fault"]) if row["fault"] else None
    fields["source"] = Source(SourceKind(row["source_kind"]), row["source_id"], row["source_name"])
    fields["attachments"] = tuple(Attachment(**item) for item in row["attachments"])
    fields["attempts"] = tuple(Attempt(**item) for item in row["attempts"])
    return fields


def insert_row(tx: Connection, row: Json) -> None:
    """A new row; `sqlalchemy.exc.IntegrityError` when the name is taken."""
    time = now()
    tx.execute(insert(volumes), {"created_at": time, "updated_at": time, "attachments": [], "attempts": []} | row)


def get(tx: Connection, volume_id: str) -> Volume:
    """`NotFoundError` if there is none."""
    row = _row(tx, select(*_COLUMNS), volume_id)
    if row is None:
        raise NotFoundError(f"volume {volume_id} is gone", volume=volume_id)
    return as_volume(row)


def find(tx: Connection, volume_id: str) -> Volume | None:
    row = _row(tx, select(*_COLUMNS), volume_id)
    return as_volume(row) if row else None


def details(tx: Connection, volume_id: str) -> VolumeDetails:
    row = _row(tx, select(volumes), volume_id)
    if row is None:
        raise NotFoundError(f"volume {volume_id} is gone", volume=volume_id)
    return as_details(row)


@of_cells
def as_details(row: RowMapping) -> VolumeDetails:
    return VolumeDetails(**_fields(row), explanation=explanation_of(row["explanation"]))


@of_cells
def explanation_of(value: Json | None) -> Explanation | None:
    if value is None:
        return None
    verdicts = tuple(Verdict(**verdict) for verdict in value["backends"])
    return Explanation(value["size"], value["type"], value["chosen"], verdicts)


def _row(tx: Connection, query: Select[Any], volume_id: str) -> RowMapping | None:
    return tx.execute(query.where(volumes.c.id == volume_id)).mappings().one_or_none()


def column(tx: Connection, volume_id: str, name: str) -> Any:
    """One internal column, such as `requested`."""
    return tx.execute(select(volumes.c[name]).where(volumes.c.id == volume_id)).scalar_one_or_none()


def lock_names(tx: Connection, volume_id: str) -> list[str]:
    """The locks of who works on a volume: its own, and that of the tree whose files it shares."""
    tree = column(tx, volume_id, "tree")
    return [volume_id, tree] if tree else [volume_id]


def trees(tx: Connection) -> dict[str, str]:
    """Of every volume: the lock of its tree, its own where it is the root or shares nothing."""
    return {row.id: row.tree or row.id for row in tx.execute(select(volumes.c.id, volumes.c.tree))}


def by_name(tx: Connection, project: str, name: str) -> Volume | None:
    query = select(*_COLUMNS).where(volumes.c.project == project, volumes.c.name == name)
    row = tx.execute(query).mappings().one_or_none()
    return as_volume(row) if row else None


def by_prefix(tx: Connection, prefix: str) -> list[Volume]:
    """Those whose id begins with `prefix`, of any project; at most ten."""
    query = select(*_COLUMNS).where(volumes.c.id >= prefix, volumes.c.id < prefix + "g").limit(10)
    return [as_volume(row) for row in tx.execute(query).mappings()]


def in_status(tx: Connection, status: Status) -> list[Volume]:
    """Of every project."""
    rows = tx.execute(select(*_COLUMNS).where(volumes.c.status == status)).mappings()
    return [as_volume(row) for row in rows]


def listing(
    tx: Connection, *, project: str | None, equal: dict[str, str], sort: str, descending: bool
) -> Iterator[Volume]:
    """All that match, as they come; `equal` maps columns to values, `sort` is a column."""
    query = select(*_COLUMNS)
    if project is not None:
        query = query.where(volumes.c.project == project)
    for name, value in equal.items():
        query = query.where(volumes.c[name] == value)
    order = [volumes.c[sort], volumes.c.id]
    query = query.order_by(*(key.desc() if descending else key for key in order))
    for row in tx.execution_options(yield_per=200).execute(query).mappings():
        yield as_volume(row)


def transition(
    tx: Connection, volume_id: str, source: Iterable[Status], target: Status, request: str, **values: Any
) -> None:
    """Compare and set the status, with the event that says so. `ConflictError` if it was another."""
    status.transition(tx, volumes, volume_id, source, target, request, **values)


def change(tx: Connection, volume_id: str, **values: Any) -> None:
    tx.execute(update(volumes).where(volumes.c.id == volume_id).values(updated_at=now(), **values))


def remove(tx: Connection, volume_id: str) -> None:
    tx.execute(delete(volumes).where(volumes.c.id == volume_id))


def children(tx: Connection, source_ids: Sequence[str]) -> list[Volume]:
    """Volumes made from these volumes, snapshots or images."""
    rows = tx.execute(select(*_COLUMNS).where(volumes.c.source_id.in_(source_ids))).mappings()
    return [as_volume(row) for row in rows]


def sums_by_backend(tx: Connection) -> dict[str, tuple[int, int, int]]:
    """For each backend: bytes provisioned, volumes, bytes promised and not yet written."""
    columns = (func.count(), *sums.parts(volumes.c.size), *sums.parts(volumes.c.promised))
    query = select(volumes.c.backend, *columns).where(volumes.c.backend.is_not(None)).group_by(volumes.c.backend)
    rows = tx.execute(query)
    return {row[0]: (sums.whole(row[2], row[3]), int(row[1]), sums.whole(row[4], row[5])) for row in rows}


def uses_type(tx: Connection, name: str) -> bool:
    return tx.execute(select(volumes.c.id).where(volumes.c.type == name).limit(1)).first() is not None
