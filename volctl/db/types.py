"""Queries on volume types. Every function works in the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from volctl.db.tables import types
from volctl.model import Json, VolumeType, now


def add(tx: Connection, name: str, specs: dict[str, str], description: str | None) -> None:
    """`sqlalchemy.exc.IntegrityError` when there is one."""
    row = {"name": name, "specs": specs, "description": description, "created_at": now()}
    tx.execute(insert(types), row)


def restore(tx: Connection, row: Json) -> None:
    """A type as it was before the database was lost."""
    tx.execute(insert(types), row)


def find(tx: Connection, name: str) -> VolumeType | None:
    row = tx.execute(select(types).where(types.c.name == name)).mappings().one_or_none()
    return VolumeType(**row) if row else None


def listing(tx: Connection) -> list[VolumeType]:
    return [VolumeType(**row) for row in tx.execute(select(types).order_by(types.c.name)).mappings()]


def change(tx: Connection, name: str, **values: Any) -> None:
    tx.execute(update(types).where(types.c.name == name).values(**values))


def remove(tx: Connection, name: str) -> None:
    tx.execute(delete(types).where(types.c.name == name))
