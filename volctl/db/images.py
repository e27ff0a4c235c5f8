"""Queries on registered images. Every function works in the caller's transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, delete, insert, select, update

from volctl.config import Places
from volctl.db.tables import images
from volctl.errors import NotFoundError
from volctl.model import Image, Json

_INTERNAL = {"identity", "mark", "packed", "used_at", "registered"}
_COLUMNS = [column for column in images.c if column.name not in _INTERNAL]
_UNCLAIMED = images.c.origin.is_not(None) & images.c.name.is_(None) & images.c.registered.is_not(True)


def _select(tx: Connection, query: Select[Any]) -> list[Image]:
    """By a query of `_COLUMNS`. Our copies are in the store beside the database, which may have been moved together."""
    store = Places(Path(str(tx.engine.url.database)).parent, None).images
    return [_as_image(dict(row), store) for row in tx.execute(query).mappings()]


def _as_image(row: Json, store: Path) -> Image:
    if row.pop("owned"):
        row["location"] = str(store / row["id"])
    return Image(**row)


def insert_row(tx: Connection, row: Json) -> None:
    """A new row; `sqlalchemy.exc.IntegrityError` when the name is taken."""
    tx.execute(insert(images), row)


def find(tx: Connection, image_id: str) -> Image | None:
    return next(iter(_select(tx, select(*_COLUMNS).where(images.c.id == image_id))), None)


def internals(tx: Connection, image_id: str) -> Json:
    """`identity` of the file as it was checked, whether it is our own copy (`owned`), what had `packed` it.

    `NotFoundError` if it is gone.
    """
    return _some(tx, image_id, "identity", "owned", "packed")


def content(tx: Connection, image_id: str) -> Json:
    """What a row says of the file that was fetched: format, sizes, checksum, the server's mark, what had packed it."""
    return _some(tx, image_id, "format", "size", "virtual_size", "sha256", "mark", "packed", "used_at")


def _some(tx: Connection, image_id: str, *names: str) -> Json:
    query = select(*(images.c[name] for name in names)).where(images.c.id == image_id)
    if (row := tx.execute(query).mappings().one_or_none()) is None:
        raise NotFoundError(f"image {image_id} is gone")
    return dict(row)


def by_name(tx: Connection, name: str) -> Image | None:
    return next(iter(_select(tx, select(*_COLUMNS).where(images.c.name == name))), None)


def by_prefix(tx: Connection, prefix: str) -> list[Image]:
    return _select(tx, select(*_COLUMNS).where(images.c.id >= prefix, images.c.id < prefix + "g").limit(10))


def listing(tx: Connection) -> list[Image]:
    return _select(tx, select(*_COLUMNS).order_by(images.c.created_at))


def at_location(tx: Connection, location: str) -> list[Image]:
    """For what is not our copy."""
    return _select(tx, select(*_COLUMNS).where(images.c.location == location))


def fetched_from(tx: Connection, origin: str) -> list[RowMapping]:
    """Images from this URL, newest first: `id`, `name`, `sha256`, `mark`, `packed`, `used_at`, `identity`."""
    names = ("id", "name", "sha256", "mark", "packed", "used_at", "identity")
    columns = (images.c[name] for name in names)
    query = select(*columns).where(images.c.origin == origin, images.c.status == "available")
    return list(tx.execute(query.order_by(images.c.created_at.desc())).mappings())


def unclaimed(tx: Connection) -> list[RowMapping]:
    """What was fetched for a create and nobody registered, least recently used first: `id`, `size`, `used_at`."""
    query = select(images.c.id, images.c.size, images.c.used_at).where(_UNCLAIMED, images.c.status == "available")
    return list(tx.execute(query.order_by(images.c.used_at)).mappings())


def is_unclaimed(tx: Connection, image_id: str) -> bool:
    """Was it fetched for a create, and is nobody's yet?"""
    return tx.execute(select(images.c.id).where(images.c.id == image_id, _UNCLAIMED)).first() is not None


def register(tx: Connection, image_id: str, **values: Any) -> bool:
    """Make an unclaimed image somebody's, with what is asked of it; False if another command was first."""
    query = update(images).where(images.c.id == image_id, _UNCLAIMED).values(registered=True, **values)
    return tx.execute(query).rowcount == 1


def change(tx: Connection, image_id: str, **values: Any) -> None:
    tx.execute(update(images).where(images.c.id == image_id).values(**values))


def remove(tx: Connection, image_id: str) -> None:
    tx.execute(delete(images).where(images.c.id == image_id))
