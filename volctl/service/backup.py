"""A backup of the database."""

from __future__ import annotations

import os
from pathlib import Path

from volctl.db import backup as database
from volctl.model import Json
from volctl.service.session import Session


def backup(session: Session, file: str, *, replace: bool = False) -> Json:
    """Copy the database to a file, also while commands run; its path, its size in bytes, the database's uuid."""
    target = Path(os.path.abspath(file))
    size = database.backup(session.store, target, replace=replace)
    return {"file": str(target), "size": size, "database": session.store.uuid}
