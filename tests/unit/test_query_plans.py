"""What every command asks of the database must not read a whole table, however many volumes there are.

The statements are taken from real calls as SQLite gets them, and SQLite says how it would answer them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event

from volctl.db import events, images, quotas, volumes
from volctl.db.quotas import Usage
from volctl.db.store import Store, open_store
from volctl.engine import journal
from volctl.flows import fault
from volctl.model import now
from volctl.quota import Quota

LIMITS = {"volumes": 5, "gigabytes": 5, "snapshots": 5, "volumes_fast": 5, "gigabytes_fast": 5, "snapshots_fast": 5}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "volctl.db")
    yield opened
    opened.close()


def plans(store: Store, act: Callable[[Connection], object]) -> list[str]:
    """How SQLite answers each query of `act`: `SEARCH volumes USING COVERING INDEX …`."""
    asked: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, given: Any, *more: object) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, given))

    with store.write() as tx:
        event.listen(tx, "before_cursor_execute", note)
        act(tx)
        event.remove(tx, "before_cursor_execute", note)
        found = [tx.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}", given).all() for query, given in asked]
    assert asked
    return [str(step.detail) for steps in found for step in steps]


def scanned(steps: list[str]) -> list[str]:
    """Steps that read every row of a table; an index that holds all that is asked for is not the table."""
    return [step for step in steps if step.startswith("SCAN") and "COVERING INDEX" not in step]


def test_quota_check_reads_covering_indexes_only(store: Store) -> None:
    quota = Quota("default", LIMITS)
    steps = plans(store, lambda tx: quota.check(tx, Usage(1, 1, 1), "fast"))
    sums = [step for step in steps if " volumes " in step or " snapshots " in step]
    assert len(sums) == 4  # volumes and snapshots, in all and of the type
    assert all(step.startswith("SEARCH") and "USING COVERING INDEX" in step for step in sums), sums
    assert not scanned(steps)


def test_quota_without_limits_sums_nothing(store: Store) -> None:
    steps = plans(store, lambda tx: Quota("default", {}).check(tx, Usage(1, 1, 1), "fast"))
    assert not [step for step in steps if " volumes " in step or " snapshots " in step]


def test_limits_of_gigabytes_alone_are_summed_too(store: Store) -> None:
    steps = plans(store, lambda tx: quotas.used(tx, "default", None, snapshot_gigabytes=True))
    assert not scanned(steps)


QUERIES: dict[str, Callable[[Connection], object]] = {
    "a volume by its name": lambda tx: volumes.by_name(tx, "default", "web"),
    "a volume by its id": lambda tx: volumes.find(tx, "0" * 36),
    "a volume by the beginning of its id": lambda tx: volumes.by_prefix(tx, "0123ab"),
    "an image by its name": lambda tx: images.by_name(tx, "debian"),
    "a status": lambda tx: volumes.change(tx, "0" * 36, promised=0),
    "volumes made from a volume": lambda tx: volumes.children(tx, ["0" * 36]),
    "the sums of each backend": volumes.sums_by_backend,
    "unfinished flows": journal.unfinished,
    "an unfinished flow of a volume": lambda tx: journal.is_open_for(tx, "0" * 36),
    "a later flow of a volume that is done": lambda tx: journal.done_later(tx, "0" * 36, 5),
    "one that is not of some names": lambda tx: journal.done_later(tx, "0" * 36, 5, fault.BESIDE),
    "ended flows to forget": lambda tx: journal.has_older(tx, now()),
    "events to forget": lambda tx: events.has_older(tx, now()),
    "events of a volume": lambda tx: events.listing(tx, "0" * 36, 0, 10),
    "flows of a volume": lambda tx: journal.find(tx, "0" * 36),
}


@pytest.mark.parametrize("what", QUERIES)
def test_no_table_is_scanned_for(store: Store, what: str) -> None:
    assert not scanned(plans(store, QUERIES[what]))


def test_the_first_of_many_volumes_come_from_an_index(store: Store) -> None:
    """`list --limit 50` reads fifty rows: in the index's order, nothing sorted, no row but those."""

    def listing(tx: Connection) -> list[object]:
        return list(volumes.listing(tx, project="default", equal={}, sort="created_at", descending=True))

    assert plans(store, listing) == ["SEARCH volumes USING INDEX volumes_created (project=?)"]
