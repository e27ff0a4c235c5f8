"""A copy of the database in one file, consistent while commands run (SQLite's online backup API)."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from volctl import files, interrupt
from volctl.db.store import Store
from volctl.errors import DatabaseError, ExistsError, LockedError, NoSpaceError, UsageError

PAGES = 256  # copied between two looks for signals and the deadline


def backup(store: Store, target: Path, *, replace: bool) -> int:
    """Copy the database to `target`, durable and readable for its owner only; its bytes.

    `ExistsError` if it is there, unless `replace`. It appears whole or not at all.
    """
    _check(store, target, replace=replace)
    with files.translated(f"back up the database to {target}"), _temporary(target) as (path, fd):
        _copy(store, path)
        os.fsync(fd)
        size = os.fstat(fd).st_size
        _check(store, target, replace=replace)
        path.rename(target)
        with files.os_open(target.parent, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
    return size


def _check(store: Store, target: Path, *, replace: bool) -> None:
    if target.is_dir() or not target.parent.is_dir():
        said = "is a directory" if target.is_dir() else "is in a directory that is not there"
        raise UsageError(f"{target} {said}", hint="name a file")
    if target.exists() and target.samefile(store.path):
        raise UsageError(f"{target} is the database itself")
    if os.path.lexists(target) and not replace:
        raise ExistsError(f"{target} is there already", hint="choose another name, or say --force")


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, int]]:
    """A new file beside `target`, ours alone. What a killed backup to the same file left is removed."""
    path = target.with_name(f".{target.name[:200]}.new")
    fd = _made(path, target)
    try:
        yield path, fd
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _made(path: Path, target: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        try:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            return fd
        except FileExistsError:
            with files.os_open(path, flags) as left:
                try:
                    fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise LockedError(f"another command backs up to {target}") from error
                path.unlink(missing_ok=True)


def _copy(store: Store, path: Path) -> None:
    """In one view of the source, so that writers meanwhile neither show nor make it begin anew."""
    try:
        with store.read() as tx, closing(sqlite3.connect(path, isolation_level=None)) as copy:
            tx.exec_driver_sql("SELECT count(*) FROM meta").scalar_one()  # here the view begins
            source = tx.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            copy.execute("PRAGMA synchronous = OFF")  # synced as a whole
            source.backup(copy, pages=PAGES, progress=lambda status, left, total: interrupt.check())
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, with nothing beside it
            (said,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        if "full" in str(error):
            raise NoSpaceError(f"there is no room for {path}", hint="choose another place") from error
        raise DatabaseError(f"the database {store.path} cannot be copied: {error}") from error
    if said != "ok":
        raise DatabaseError(f"the database {store.path} is damaged: {said}", hint="look at `volctl doctor`")
