"""What a row could be made of again, for its object to carry: and the row, made of it.

Written when an object is made. A change of the row alone notes `undescribed` in the same transaction, and
whoever changed it, or the next command that writes, lets the object carry it: the note is its journal. So a
crash leaves an older description at worst, and only until then.

Not carried: what the object itself tells (its size), and what is over: status, attempts, attachments,
`available_at`, `updated_at`, the scheduler's explanation.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from volctl.db import tables, types
from volctl.model import Json, Object

VOLUME = (
    "name", "project", "description", "type", "availability_zone", "bootable", "protected", "properties",
    "source_kind", "source_id", "source_name", "created_at", "tree",
)  # fmt: skip
SNAPSHOT = (
    "name", "project", "volume_id", "description", "properties", "created_at", "type", "bootable",
    "volume_properties",
)  # fmt: skip
TABLES = {"volume": (tables.volumes, VOLUME), "snap": (tables.snapshots, SNAPSHOT)}


def describe(tx: Connection, target: Object) -> Object:
    """With what its row says; bare if it has none."""
    table, columns = TABLES[target.kind]
    row = tx.execute(select(table).where(table.c.id == target.id)).mappings().one_or_none()
    if row is None:
        return Object(target.kind, target.id)
    about: Json = {column: row[column] for column in columns if row[column] not in (None, False, {})}
    if row["type"] and (found := types.find(tx, row["type"])):
        about["specs"] = [found.specs, found.description, found.created_at]
    return Object(target.kind, target.id, about)


def backend_of(tx: Connection, target: Object) -> str | None:
    """The backend that it is on by its row, whatever its status; None without a row."""
    volumes, snapshots, cached = tables.volumes, tables.snapshots, tables.cached_images
    if target.kind == "image":
        query = select(cached.c.backend).where(cached.c.id == target.id)
    elif target.kind == "volume":
        query = select(volumes.c.backend).where(volumes.c.id == target.id)
    else:
        joined = snapshots.join(volumes, volumes.c.id == snapshots.c.volume_id)
        query = select(volumes.c.backend).select_from(joined).where(snapshots.c.id == target.id)
    return tx.execute(query).scalar_one_or_none()


def outdate_type(tx: Connection, name: str) -> None:
    """A type was changed: what the objects that have it carry is older from here on."""
    for table, _ in TABLES.values():
        tx.execute(update(table).where(table.c.type == name).values(undescribed=True))


def outdated(tx: Connection, limit: int | None = None) -> list[tuple[Object, str, str | None]]:
    """Objects whose rows were changed since, each with the volume that guards it, and its backend."""
    volumes, snapshots = tables.volumes, tables.snapshots
    of_volumes = select(volumes.c.id, volumes.c.id, volumes.c.backend).where(volumes.c.undescribed.is_(True))
    joined = snapshots.join(volumes, volumes.c.id == snapshots.c.volume_id)
    of_snapshots = select(snapshots.c.id, volumes.c.id, volumes.c.backend).select_from(joined)
    of_snapshots = of_snapshots.where(snapshots.c.undescribed.is_(True))
    found: list[tuple[Object, str, str | None]]
    found = [(Object("volume", row[0]), row[1], row[2]) for row in tx.execute(of_volumes.limit(limit))]
    return found + [(Object("snap", row[0]), row[1], row[2]) for row in tx.execute(of_snapshots.limit(limit))]


def caught_up(tx: Connection, target: Object) -> None:
    """The object carries what `describe` said, unless the row was changed again since."""
    if describe(tx, target).about == target.about:
        table, _ = TABLES[target.kind]
        tx.execute(update(table).where(table.c.id == target.id).values(undescribed=None))
