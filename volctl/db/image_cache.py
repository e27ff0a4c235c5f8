"""Queries on the image cache. Every function works in the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, or_, select, update

from volctl.db import sums
from volctl.db.tables import cached_images
from volctl.errors import ConflictError
from volctl.model import Object, now
from volctl.records import record

FILLING, AVAILABLE, DELETING, ERROR = "filling", "available", "deleting", "error"


@record
class CachedImage:
    """An image-volume that volumes are cloned from. Sizes in bytes: the object's, the guest disk's, its data's.

    `key` names the content: `sha256:HEX` where it is known, else the file's `identity`. `location` is
    the file that it was made from, `packed` how that is packed.
    """

    id: str
    backend: str
    key: str
    identity: str
    location: str
    format: str
    packed: str | None
    virtual_size: int
    data_size: int
    size: int
    status: str
    created_at: str
    used_at: str

    @property
    def object(self) -> Object:
        """The image-volume as its backend knows it."""
        return Object("image", self.id)


def insert_entry(tx: Connection, entry: CachedImage) -> None:
    tx.execute(insert(cached_images).values({column.name: getattr(entry, column.name) for column in fields(entry)}))


def find(tx: Connection, entry_id: str) -> CachedImage | None:
    found = _select(tx, cached_images.c.id == entry_id)
    return found[0] if found else None


def listing(tx: Connection, backend: str | None = None) -> list[CachedImage]:
    """Least recently used first."""
    return _select(tx, *([] if backend is None else [cached_images.c.backend == backend]))


def holding(tx: Connection, content: Sequence[str]) -> list[CachedImage]:
    """Entries of any backend and status that hold one of these contents (keys)."""
    return _select(tx, or_(cached_images.c.key.in_(content), cached_images.c.identity.in_(content)))


def of_file(tx: Connection, identity: str) -> CachedImage | None:
    """A complete entry that was made from this very file."""
    found = _select(tx, cached_images.c.identity == identity, cached_images.c.status == AVAILABLE)
    return found[-1] if found else None


def _select(tx: Connection, *conditions: ColumnElement[bool]) -> list[CachedImage]:
    query = select(cached_images).where(*conditions).order_by(cached_images.c.used_at, cached_images.c.id)
    return [CachedImage(**row) for row in tx.execute(query).mappings()]


def sizes_by_backend(tx: Connection) -> dict[str, int]:
    """Bytes that the cache has provisioned on each backend."""
    query = select(cached_images.c.backend, *sums.parts(cached_images.c.size)).group_by(cached_images.c.backend)
    return {row[0]: sums.whole(row[1], row[2]) for row in tx.execute(query)}


def transition(tx: Connection, entry_id: str, source: Iterable[str], target: str) -> None:
    """Compare and set the status. `ConflictError` if it was another."""
    allowed = (cached_images.c.id == entry_id, cached_images.c.status.in_(list(source)))
    if not tx.execute(update(cached_images).where(*allowed).values(status=target)).rowcount:
        found = find(tx, entry_id)
        raise ConflictError(f"cached image {entry_id} is {found.status if found else 'gone'}")


def change(tx: Connection, entry_id: str, **values: Any) -> None:
    tx.execute(update(cached_images).where(cached_images.c.id == entry_id).values(**values))


def touch(tx: Connection, entry_id: str) -> None:
    """It was used now."""
    change(tx, entry_id, used_at=now())


def remove(tx: Connection, entry_id: str) -> None:
    tx.execute(delete(cached_images).where(cached_images.c.id == entry_id))
