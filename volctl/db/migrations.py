"""Schema changes: an ordered list of functions. `user_version` counts those that were applied.

A new change is a function added at the end, and never one edited: each runs once, in the transaction
that raises `user_version`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection

from volctl.db import tables


def create_tables(connection: Connection) -> None:
    """The first schema, whole."""
    tables.metadata.create_all(connection, checkfirst=False)


def index_status(connection: Connection) -> None:
    """The attached volumes, whose devices every listing asks after, are found among 100,000."""
    connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS volumes_status ON volumes (status)")


def share_layers(connection: Connection) -> None:
    """Chains of files that volumes share, and the tree that a volume is locked with."""
    tables.layers.create(connection, checkfirst=True)
    add_column(connection, tables.volumes.c.tree)


def note_undescribed(connection: Connection) -> None:
    """Which objects are still to be told what they are about: of a database that was there before, all."""
    for table in (tables.volumes, tables.snapshots):
        add_column(connection, table.c.undescribed)
        for index in table.indexes:
            index.create(connection, checkfirst=True)
        connection.exec_driver_sql(f"UPDATE {table.name} SET undescribed = 1")


def fetched_images(connection: Connection) -> None:
    """Where an image was fetched from, and what is not fetched to its end."""
    for column in ("origin", "mark", "packed", "used_at"):
        add_column(connection, tables.images.c[column])
    tables.parts.create(connection, checkfirst=True)


def add_column(connection: Connection, column: Column[Any]) -> None:
    """A column that may be null, unless it is there: `create_tables` makes the present schema whole."""
    table = column.table.name
    there = {row[1] for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")}
    if column.name not in there:
        kind = column.type.compile(connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}")


def cache_images(connection: Connection) -> None:
    """The image cache."""
    tables.cached_images.create(connection, checkfirst=True)


def registered_images(connection: Connection) -> None:
    """Which images without a name were registered all the same."""
    add_column(connection, tables.images.c.registered)


MIGRATIONS: list[Callable[[Connection], None]] = [
    create_tables,
    index_status,
    share_layers,
    cache_images,
    note_undescribed,
    fetched_images,
    registered_images,
]
VERSION = len(MIGRATIONS)


def apply(connection: Connection, version: int) -> None:
    """Bring a database of `version` up to `VERSION`, inside the caller's transaction."""
    for migrate in MIGRATIONS[version:]:
        migrate(connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
