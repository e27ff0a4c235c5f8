"""Opening the database, and the two kinds of transaction.

`with store.write() as tx:` is BEGIN IMMEDIATE … COMMIT, `with store.read() as tx:` one consistent
view. Source of the pragmas: the SQLite documentation, "Write-Ahead Logging" and "PRAGMA synchronous".
Every failure of SQLite becomes a `DatabaseError` here and nowhere else.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, select, update
from sqlalchemy.exc import DatabaseError as SqlError
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from volctl import interrupt
from volctl.db import migrations, tables
from volctl.db.place import is_full, refuse_full, refuse_network
from volctl.errors import DatabaseError, LockedError, NoSpaceError
from volctl.model import now

T = TypeVar("T")
APPLICATION_ID = 0x766F6C63  # "volc"
BUSY_SLICE = 0.25  # seconds SQLite waits by itself before we look for signals and the deadline
BUSY_LIMIT = 60.0
BACKUP_NOTE = "backup-"  # before the name of the link to a backup that is not whole yet
PARTS = ("", "-wal", "-shm", "-journal")  # of the names of a database and of what SQLite keeps beside it
VERSIONS = 18
"""Where a database's header says how it is written and read, a byte each: 2 with a log beside it (WAL), 1 without."""
RECIPE = (
    "restore it from a backup (volctl backup-db), after removing what is beside it (volctl.db-wal, -shm, -journal), "
    "or make it again from the backends: volctl doctor --rebuild"
)
WHOLE = {"whole": True}
"""In the details of an error about a database that only this command cannot use."""

probe: Callable[[str], None] = lambda point: None
"""Told each instant at which a crash leaves another state; the crash tests die there."""


class Store:
    """An open database. `uuid` is what the marks on our storage carry."""

    def __init__(self, path: Path, engine: Engine, *, take_over: bool = False) -> None:
        self.path = path
        self._connection = _connect(path, engine)
        self._engine = engine
        try:
            self._check(take_over)
        except BaseException:
            self.close()
            raise

    def _check(self, take_over: bool) -> None:
        with self.read() as tx:
            marks = tx.exec_driver_sql(
                "SELECT application_id, user_version FROM pragma_application_id, pragma_user_version"
            ).one()
        if marks[0] != APPLICATION_ID:
            raise DatabaseError(f"{self.path} is not a volctl database", hint=RECIPE)
        if marks[1] > migrations.VERSION:
            said = f"{self.path} was written by a newer volctl (schema {marks[1]})"
            raise DatabaseError(said, hint="upgrade volctl", details=WHOLE)
        with self.read() as tx:
            values = {row.key: row.value for row in tx.execute(select(tables.meta.c.key, tables.meta.c.value))}
        if "uuid" not in values:
            raise DatabaseError(f"{self.path} has lost its uuid", hint=RECIPE)
        self.uuid = values["uuid"]
        here = machine_id()
        if here and values.get("machine_id") not in (None, here):
            self._of_another_host(values["machine_id"], here, take_over)
        if marks[1] < migrations.VERSION:
            with self.write() as tx:
                version = tx.exec_driver_sql("PRAGMA user_version").scalar_one()
                migrations.apply(tx, int(version))

    def _of_another_host(self, owner: str, here: str, take_over: bool) -> None:
        if not take_over:
            said = f"{self.path} belongs to another host (machine-id {owner})"
            hint = "work on that host; if it is no more, or this is its disk: volctl doctor --take-over"
            raise DatabaseError(said, hint=hint, details=WHOLE)
        with self.write() as tx:
            tx.execute(update(tables.meta).where(tables.meta.c.key == "machine_id").values(value=here))

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction that may write. It is never open while a program runs."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection
            probe("before commit")
        probe("after commit")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent view."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        connection = self._connection
        with translated(self.path):
            _begin(connection, begin)
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


def _begin(connection: Connection, begin: str) -> None:
    connection.info["begin"] = begin
    _patiently(connection.begin, connection.rollback)


def _connect(path: Path, engine: Engine) -> Connection:
    """Whoever closes it last holds it alone, until all that was in its log is synced."""
    with translated(path):
        return _patiently(engine.connect)


def _patiently(act: Callable[[], T], back: Callable[[], None] = lambda: None) -> T:
    """Wait for others in slices, so that signals and the deadline are heard."""
    waited = 0.0
    while True:
        interrupt.check()
        try:
            return act()
        except OperationalError as error:
            back()
            if "locked" not in str(error.orig) or waited > BUSY_LIMIT:
                raise
            waited += BUSY_SLICE


def open_store(
    path: Path, *, may_create: Callable[[], None] = lambda: None, take_over: bool = False, alone: bool = False
) -> Store:
    """Open the database at `path`, making it first where there is none.

    `may_create` is asked before a missing one is made, and raises if storage of ours exists without
    it. `take_over` makes another host's file this one's. `alone`: the caller is `alone_in` the directory.
    `DatabaseError` for an empty, foreign, corrupt or newer file, another host's, a network file system.
    """
    refuse_network(path.parent)
    refuse_full(path)
    if not path.exists():
        if path.is_symlink():
            raise DatabaseError(f"the database {path} is a link to what is not there", hint="is its disk mounted?")
        _create(path, may_create)
    real = path.resolve()  # beside which SQLite keeps its files
    if _is_backup(path) or _part(real, "-journal").exists():  # the latter of a `_give_log` that was killed
        with nullcontext() if alone else alone_in(real.parent):
            _give_log(real)
    return Store(path, _engine(path), take_over=take_over)


def _is_backup(path: Path) -> bool:
    """Was a backup put here? What is no database is refused before SQLite sees it: an empty file opens happily."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(descriptor)
            head = os.read(descriptor, VERSIONS + 2) if stat.S_ISREG(found.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as error:
        hint, details = ("may you read it, and is its disk well?", WHOLE) if path.is_file() else (RECIPE, None)
        said = f"the database {path} cannot be read: {error.strerror}"
        raise DatabaseError(said, hint=hint, details=details) from error
    if not stat.S_ISREG(found.st_mode):
        raise DatabaseError(f"the database {path} is no regular file", hint=RECIPE)
    if found.st_size == 0:
        raise DatabaseError(f"the database {path} is empty", hint=RECIPE)
    if not head.startswith(b"SQLite format 3\0"):
        raise DatabaseError(f"{path} is not a database", hint=RECIPE)
    return head[VERSIONS:] == b"\1\1"


def _give_log(path: Path) -> None:
    """Let a backup have a log of its own, and set aside one that is beside it: SQLite would play it into the backup.

    It is of the database that was here before. A header says 1 only while there is no log: SQLite makes
    it 2, with a rollback journal, before it makes a log, and 1 again after that is gone (its pages
    "Database File Format", 1.3.3, and "Write-Ahead Logging", Backwards Compatibility), and what
    we build says 2 before it gets its name. Whoever comes second finds 2: then the log is in use.
    """
    if _is_backup(path):
        _set_aside(path, "-wal", "-shm")
        _sync(path.parent)
    engine = _engine(path)
    try:
        _connect(path, engine).close()
    finally:
        engine.dispose()


def _create(path: Path, may_create: Callable[[], None]) -> None:
    """Build the file under a temporary name, sync it and rename it into place; one process at a time.

    Asked under the lock: another first run may have made it, and a volume, a moment ago.

    What a killed first run left under that name is removed by the next one.
    """
    with alone_in(path.parent):
        if not path.exists():
            may_create()
            temporary = _temporary(path)
            remove_files(temporary)
            _build(temporary, str(uuid.uuid4()))
            probe("before rename")
            remove_files(path)  # a log of the one that is gone would be played into the new one
            temporary.rename(path)


def recreate(path: Path, database: str, fill: Callable[[Store], None], may_replace: Callable[[], None]) -> Path | None:
    """Make a database that is lost again, with its uuid and what `fill` puts into it; all of it or nothing.

    A file that is in its place is set aside; where to. `may_replace` raises if it should stay: asked
    when nobody else can put one there.
    """
    refuse_network(path.parent)
    with alone_in(path.parent):
        may_replace()
        temporary, aside = _temporary(path), None
        remove_files(temporary)
        _build(temporary, database)
        store = Store(temporary, _engine(temporary))
        try:
            fill(store)
        finally:
            store.close()
        _check_whole(temporary)
        probe("before rename")
        if any(os.path.lexists(part) for part in _parts(path)):
            aside = _set_aside(path, *PARTS)
        temporary.rename(path)
    return aside


def _set_aside(path: Path, *suffixes: str) -> Path:
    aside = path.with_name(f"{path.name}.unusable-{now()}")
    for suffix in suffixes:
        if os.path.lexists(part := _part(path, suffix)):
            part.rename(_part(aside, suffix))
    return aside


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """One process at a time; what was renamed in it is durable after."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def leftovers(path: Path) -> list[Path]:
    """What first runs that were killed left beside the database at `path`."""
    temporary = _temporary(path)
    return [temporary] if any(part.exists() for part in _parts(temporary)) else []


def remove_files(path: Path) -> None:
    """A database and what SQLite keeps beside it, itself last; not there is success."""
    for part in reversed(_parts(path)):
        part.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _parts(path: Path) -> list[Path]:
    return [_part(path, suffix) for suffix in PARTS]


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _build(path: Path, database: str) -> None:
    engine = _engine(path)
    try:
        with translated(path):
            _fill(engine, database)
    finally:
        engine.dispose()
    _check_whole(path)
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    keep_owner(path)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_whole(path: Path) -> None:
    """SQLite says nothing when it cannot write its log into a file that it closes: it keeps the log."""
    if any(os.path.lexists(part) for part in _parts(path)[1:]):
        kind = NoSpaceError if is_full(path.parent) else DatabaseError
        raise kind(f"the database {path} could not be written as a whole", hint="look at its disk, and free some space")


def _fill(engine: Engine, database: str) -> None:
    with engine.connect() as connection:
        connection.info["begin"] = "BEGIN IMMEDIATE"
        with connection.begin():
            migrations.apply(connection, 0)
            marks = [{"key": "uuid", "value": database}]
            if here := machine_id():
                marks.append({"key": "machine_id", "value": here})
            connection.execute(insert(tables.meta), marks)
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")


def _engine(path: Path) -> Engine:
    where = URL.create("sqlite", database=str(path))  # a path may hold what a URL gives a meaning
    read = partial(_json, path)
    engine = create_engine(where, poolclass=StaticPool, connect_args={"timeout": BUSY_SLICE}, json_deserializer=read)

    @event.listens_for(engine, "connect")
    def connected(connection: object, record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]  # SQLAlchemy emits BEGIN, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def began(connection: Connection) -> None:
        connection.exec_driver_sql(connection.info.get("begin", "BEGIN"))

    return engine


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatabaseError(
            f"the database {path} is damaged: a cell of it is no JSON ({error})", hint=RECIPE
        ) from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except SqlError as error:
        said = str(error.orig)
        if "locked" in said or "busy" in said:
            raise LockedError(f"the database {path} was busy for {BUSY_LIMIT:g} s") from error
        if "UNIQUE" in said or "FOREIGN KEY" in said:
            raise
        if is_full(path.parent):
            raise NoSpaceError(f"there is no room for the database {path}: {said}", hint="free some space") from error
        if "readonly" in said or "unable to open" in said:
            hint = "may you write it and its directory, and is the file system mounted read-only?"
            raise DatabaseError(f"the database {path} cannot be written: {said}", hint=hint, details=WHOLE) from error
        raise DatabaseError(f"the database {path} cannot be used: {said}", hint=RECIPE) from error


def machine_id() -> str | None:
    """This host, where it has a name for itself (machine-id(5))."""
    try:
        return Path("/etc/machine-id").read_text().strip() or None
    except OSError:
        return None


def keep_owner(path: Path) -> None:
    """As root, give a new file to the owner of its directory."""
    if os.geteuid() == 0:
        parent = path.parent.stat()
        os.chown(path, parent.st_uid, parent.st_gid, follow_symlinks=False)
