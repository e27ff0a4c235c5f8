"""A backup of the database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from volctl.db import backup as database
from volctl.engine import journal
from volctl.flows import words
from volctl.flows.fault import UNKNOWN
from volctl.model import Json
from volctl.service import flows
from volctl.service.session import Session

if TYPE_CHECKING:
    from sqlalchemy import Connection


def backup(session: Session, file: str, *, replace: bool = False) -> Json:
    """Copy the database to a file, also while commands run; its path, its size in bytes, the database's uuid."""
    target = Path(words.absolute(file))
    size = database.backup(session.store, target, _end_flows, replace=replace)
    return {"file": str(target), "size": size, "database": session.store.uuid}


def _end_flows(tx: Connection) -> None:
    """In the copy nothing is under way: when it is put back, all that is open now has long come to its own end.

    To undo or complete that then would be to delete, or to write over, what came after.
    """
    for open_ in journal.unfinished(tx, all_=True):
        row = journal.load(tx, open_["id"])
        assert row is not None
        why = f"the backup was made while {row['name']} was under way: nobody knows how that ended"
        flows.close(tx, row, why, UNKNOWN)
        journal.abandon(tx, row["id"])
