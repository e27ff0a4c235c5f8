"""Is the database whole? SQLite answers for its file, and what every row is made into for what is in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from volctl.db import snapshots, volumes
from volctl.db.made import every_row
from volctl.db.store import RECIPE, Store
from volctl.engine import journal
from volctl.errors import DatabaseError

MADE: dict[str, Callable[[Any], Any]] = {
    "volumes": volumes.as_details,
    "snapshots": snapshots.as_snapshot,
    "flows": journal.as_run,
}
"""Of the other tables a row is as it is, once its cells are read."""


def check_integrity(store: Store) -> None:
    """`DatabaseError` if SQLite finds its file damaged, indexes included, or if a row cannot be read."""
    with store.read() as tx:
        said = tx.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        if said != "ok":
            raise DatabaseError(f"the database {store.path} is damaged: {said}", hint=RECIPE)
        for table, row in every_row(tx):
            if make := MADE.get(table):
                make(row)


def check_writable(store: Store) -> None:
    """`DatabaseError` for one that only this command cannot use. Of such a file a BEGIN IMMEDIATE is only a read."""
    with store.write() as tx:
        tx.exec_driver_sql("DELETE FROM meta WHERE 0")
