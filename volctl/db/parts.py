"""Queries on files that are being fetched. Every function works in the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from volctl.db.tables import parts
from volctl.model import Json


def of(tx: Connection, origin: str) -> RowMapping | None:
    """What there is of the file at this URL."""
    return tx.execute(select(parts).where(parts.c.origin == origin)).mappings().one_or_none()


def ids(tx: Connection) -> set[str]:
    return set(tx.execute(select(parts.c.id)).scalars())


def exists(tx: Connection, part_id: str) -> bool:
    """Is it one still, or whole by now?"""
    return tx.execute(select(parts.c.id).where(parts.c.id == part_id)).first() is not None


def older(tx: Connection, before: str) -> list[RowMapping]:
    """Those that were begun before that time."""
    return list(tx.execute(select(parts).where(parts.c.created_at < before)).mappings())


def put(tx: Connection, row: Json) -> None:
    """The row, also in the place of an older one."""
    remove(tx, row["id"])
    tx.execute(insert(parts), row)


def change(tx: Connection, part_id: str, **values: Any) -> None:
    tx.execute(update(parts).where(parts.c.id == part_id).values(**values))


def remove(tx: Connection, part_id: str) -> None:
    tx.execute(delete(parts).where(parts.c.id == part_id))
