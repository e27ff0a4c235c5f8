"""A copy of the database in one file, consistent while commands run (SQLite's online backup API)."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import StaticPool

from volctl import files, interrupt
from volctl.db.store import BACKUP_NOTE, VERSIONS, Store, alone_in, remove_files
from volctl.errors import DatabaseError, ExistsError, NoSpaceError, UsageError
from volctl.model import is_uuid

PAGES = 256  # copied between two looks for signals and the deadline
UNFINISHED = ".volctl-backup-"  # before the name of a backup that is not whole yet


def backup(store: Store, target: Path, amend: Callable[[Connection], None], *, replace: bool) -> int:
    """Copy the database to `target`, durable and readable for its owner only; its bytes.

    `amend` changes the copy before it is there, whole or not at all. `ExistsError` if there is such a
    file, unless `replace`; `UsageError` for a place where none should be.
    """
    _check(store, target, replace=replace)
    doing = f"back up the database to {target}"
    with interrupt.work(), files.translated(doing), _temporary(store, target) as (path, fd):
        _copy(store, path, fd, amend)
        os.fsync(fd)
        size = os.fstat(fd).st_size
        _check(store, target, replace=replace)
        interrupt.check()
        with interrupt.closing():
            _give_name(path, target, replace=replace)
            interrupt.finished()
    return size


def _give_name(path: Path, target: Path, *, replace: bool) -> None:
    """Durable on return, or undone."""
    files.give_name(path, target, replace=replace)
    try:
        with files.os_open(target.parent, os.O_RDONLY | os.O_DIRECTORY) as directory:
            os.fsync(directory)
    except BaseException:
        if not replace:  # else what it replaced is gone, and this is better than nothing
            target.unlink()
        raise


def _check(store: Store, target: Path, *, replace: bool) -> None:
    try:
        if not target.parent.is_dir():
            raise UsageError(f"{target} is in a directory that is not there", hint="name a file")
        there = target.stat() if target.exists() else None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{str(target)!r} cannot be made: {said}") from error
    if there and not stat.S_ISREG(there.st_mode):
        said = "a directory" if stat.S_ISDIR(there.st_mode) else "no regular file"
        raise UsageError(f"{target} is {said}", hint="name a file")
    if there and target.samefile(store.path):
        raise UsageError(f"{target} is the database itself")
    if _is_for_others(store.path, target):
        raise UsageError(f"{target} is where volctl's own files are", hint="keep backups elsewhere")
    if os.path.lexists(target) and not replace:
        raise ExistsError(f"{target} is there already", hint="choose another name, or say --force")


def _is_for_others(database: Path, target: Path) -> bool:
    """A pool, a directory within the state directory, or what SQLite or we keep beside the database."""
    state, directory = database.parent.resolve(), target.parent.resolve()
    beside = directory == state and target.name.startswith((database.name, f".{database.name}", BACKUP_NOTE))
    return beside or state in directory.parents or os.path.lexists(directory / files.MARKER)


@contextmanager
def _temporary(store: Store, target: Path) -> Iterator[tuple[Path, int]]:
    """A new file beside `target`, ours alone. A link in the state directory says where, in case we are killed."""
    name = str(uuid.uuid4())
    path, note = target.with_name(UNFINISHED + name), store.path.with_name(BACKUP_NOTE + name)
    with alone_in(note.parent):
        note.symlink_to(path)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except BaseException:
            note.unlink()
            raise
        fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        yield path, fd
    finally:
        with suppress(OSError):  # as long as the note is there, the next command tries again
            remove_files(path)
            note.unlink(missing_ok=True)
        os.close(fd)


def sweep(state: Path) -> None:
    """Remove what backups that were killed left. What cannot be removed now is tried again by the next command."""
    notes = [state / name for name in os.listdir(state) if name.startswith(BACKUP_NOTE)]
    if ours := [note for note in notes if _unfinished(note)]:
        with suppress(OSError), alone_in(state):
            for note in ours:
                with suppress(OSError):
                    _forget(note)


def _unfinished(note: Path) -> Path | None:
    """Where a note of ours says that a backup is; what only looks like one may lead anywhere."""
    name = note.name.removeprefix(BACKUP_NOTE)
    if not (is_uuid(name) and note.is_symlink()):
        return None
    try:
        path = note.readlink()
    except FileNotFoundError:  # another command swept it
        return None
    return path if path.is_absolute() and path.name == UNFINISHED + name else None


def _forget(note: Path) -> None:
    path = _unfinished(note)
    if path is None:
        return
    with suppress(FileNotFoundError), files.os_open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # a backup that lives
        remove_files(path)  # itself last: without it nobody looks for the rest
    note.unlink(missing_ok=True)


def _copy(store: Store, path: Path, fd: int, amend: Callable[[Connection], None]) -> None:
    """In one view of the source, so that writers meanwhile neither show nor make it begin anew; no file beside it."""
    try:
        with store.read() as tx, closing(sqlite3.connect(path, isolation_level=None)) as copy:
            tx.exec_driver_sql("SELECT count(*) FROM meta").scalar_one()  # here the view begins
            source = tx.connection.driver_connection
            assert isinstance(source, sqlite3.Connection)
            copy.execute("PRAGMA journal_mode = MEMORY")
            copy.execute("PRAGMA synchronous = OFF")  # synced as a whole
            source.backup(copy, pages=PAGES, progress=lambda status, left, total: interrupt.check())
            with create_engine("sqlite://", creator=lambda: copy, poolclass=StaticPool).connect() as changed:
                amend(changed)
        os.pwrite(fd, b"\1\1", VERSIONS)
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            (said,) = copy.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        if "full" in str(error):
            raise NoSpaceError(f"there is no room for {path}", hint="choose another place") from error
        raise DatabaseError(f"the database {store.path} cannot be copied: {error}") from error
    if said != "ok":
        raise DatabaseError(f"the database {store.path} is damaged: {said}", hint="look at `volctl doctor`")
