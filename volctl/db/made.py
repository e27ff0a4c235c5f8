"""What is made of rows: a row with values that no command writes is damage, which SQLite does not see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import TypeVar

from sqlalchemy import Connection, RowMapping, select

from volctl.db.store import RECIPE
from volctl.db.tables import metadata
from volctl.errors import DatabaseError

A = TypeVar("A")
T = TypeVar("T")


def of_cells(make: Callable[[A], T]) -> Callable[[A], T]:
    """`make` what a row or a cell of one says; `DatabaseError` if it cannot be made."""

    @wraps(make)
    def made(cells: A) -> T:
        try:
            return make(cells)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            said = f"the database is damaged: a row holds what is never written to one ({error})"
            raise DatabaseError(said, hint=RECIPE) from error

    return made


def every_row(tx: Connection) -> Iterator[tuple[str, RowMapping]]:
    """Of every table, with its name."""
    for table in metadata.sorted_tables:
        for row in tx.execute(select(table).execution_options(yield_per=200)).mappings():
            yield table.name, row
