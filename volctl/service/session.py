"""Opening the state for one command: configuration, database, backends, and what others left settled."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from volctl import command, interrupt
from volctl.config import Config, Places, load, places
from volctl.db import about as rows
from volctl.db import events, volumes
from volctl.db.store import BACKUP_NOTE, Store, keep_owner, open_store
from volctl.engine import journal
from volctl.engine.locks import EXCLUSIVE, LockDirectory, LockSet, Names
from volctl.engine.run import Engine
from volctl.errors import AccessError, ConfigError, NoSpaceError, TimedOut, UsageError, VolctlError
from volctl.flows import FLOWS, about
from volctl.flows.context import Backends, Context
from volctl.flows.words import usage
from volctl.model import Volume, check_name, format_size, now
from volctl.records import record

if TYPE_CHECKING:
    from sqlalchemy import Connection

READ_SETTLE = 5.0  # seconds a command that only reads spends on what others left
LOCK_TIMEOUT = 60.0
AT_ONCE = 20  # objects that a command lets catch up with their rows, beside its own work


@record
class Options:
    """Where and for whom; None is the environment, then what is built in. Times in seconds.

    `take_over`: a database of another host becomes this one's.
    """

    config: str | None = None
    state_dir: str | None = None
    project: str | None = None
    timeout: float | None = None
    lock_timeout: float | None = None
    take_over: bool = False


@record
class Watcher:
    """What a long call tells.

    `warn` a sentence; `progress` (what, bytes done, bytes in all); `step` (flow, task, begun|done|…).
    """

    warn: Callable[[str], None] = lambda line: None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    step: Callable[[str, str, str], None] = lambda flow, task, state: None


@record
class Session:
    """The state, opened: what every function of the service takes first."""

    env: Context
    engine: Engine[Context]
    locks: LockDirectory
    project: str
    lock_timeout: float
    watcher: Watcher
    began: str = field(default_factory=now)

    @property
    def store(self) -> Store:
        return self.env.store

    def locked(self, names: Names) -> LockSet:
        """Hold locks by the ids of volumes (`exclusive` or `shared`) for a `with` block."""
        return self.locked_as(lambda: names)

    def locked_as(self, names: Callable[[], Names]) -> LockSet:
        """The same; which, is asked again when they are held: a volume may have become part of a tree meanwhile."""
        interrupt.listen()
        end = time.monotonic() + self.lock_timeout
        while True:
            locks = self.locks.acquire(names(), max(0.0, end - time.monotonic()))
            if _suffice(locks, names):
                return locks

    def locked_now(self, names: Callable[[], Names]) -> LockSet | None:
        """The same without waiting: None where somebody holds one of them."""
        locks = self.locks.try_acquire(names())
        return locks if locks is not None and _suffice(locks, names) else None

    @contextmanager
    def rows(self) -> Iterator[Connection]:
        """A transaction that is all there is to do: with its commit that is done."""
        interrupt.listen()
        with interrupt.closing():
            with self.store.write() as tx:
                yield tx
            interrupt.finished()

    def catch_up(self, limit: int | None = AT_ONCE) -> list[VolctlError]:
        """Let objects carry what their rows say since they were changed, where nobody works on them.

        What went wrong, one for each backend; another command tries again.
        """
        with self.store.read() as tx:
            outdated = rows.outdated(tx, limit)
        failed: dict[str | None, VolctlError] = {}
        for target, volume_id, backend in outdated:
            if backend in failed or (locks := self.locked_now(partial(self._names, volume_id))) is None:
                continue
            with locks:
                if error := about.catch_up(self.env, target, backend):
                    failed[backend] = error
        return list(failed.values())

    def changed(self) -> None:
        """A row was changed that its object tells of; that is done, however this ends."""
        try:
            failed = self.catch_up()
        except TimedOut as error:
            failed = [error]
        for late in failed:
            self.watcher.warn(f"what the object carries is older for now: {late.message}")

    def _names(self, volume_id: str) -> Names:
        with self.store.read() as tx:
            return dict.fromkeys(volumes.lock_names(tx, volume_id), EXCLUSIVE)

    def locked_volume(self, volume_id: str) -> LockSet:
        """Hold a volume, and the tree whose files it shares."""
        return self.locked_as(partial(self._names, volume_id))


def _suffice(locks: LockSet, names: Callable[[], Names]) -> bool:
    """Are they those that are wanted by now? They are closed if not, or if that cannot be told."""
    enough = False
    try:
        enough = names().items() <= locks.names.items()
    finally:
        if not enough:
            locks.close()
    return enough


def tell_rounding(session: Session, made: Volume, asked: int) -> None:
    """Say so if a volume got more than the `asked` bytes."""
    if made.size != asked:
        session.watcher.warn(f"the size was rounded up to {made.size} bytes ({format_size(made.size)})")


@contextmanager
def open_session(options: Options, watcher: Watcher, *, reads: bool = False) -> Iterator[Session]:
    """Open configuration and state, and settle what other commands left, before any lock of our own.

    `reads`: the command only reads, so settling takes at most `READ_SETTLE` seconds.
    """
    where = places(options.config, options.state_dir)
    config = load(where)
    command.confined = config.confine_qemu
    project = options.project or os.environ.get("VOLCTL_PROJECT") or "default"
    usage(check_name, project)
    prepare(where)
    nothing = lambda: _nothing_of_ours(config, where)
    store = open_store(where.database, may_create=nothing, take_over=options.take_over)
    env = Context(
        store, config, where, Backends(config, store.uuid, where.state, store), watcher.progress, watcher.warn
    )
    try:
        _sweep_backups(where.state)
        locks = LockDirectory(where.locks, keep_owner)
        engine = Engine(store, locks, FLOWS, env, watcher.step, watcher.warn)
        session = Session(env, engine, locks, project, _lock_timeout(options), watcher)
        _settle(session, reads=reads)
        yield session
    finally:
        env.close()
        store.close()


def _sweep_backups(state: Path) -> None:
    """What backups that were killed left, if there is a note of one."""
    if any(name.startswith(BACKUP_NOTE) for name in os.listdir(state)):
        from volctl.db import backup

        backup.sweep(state)


def _lock_timeout(options: Options) -> float:
    if options.lock_timeout is not None:
        return options.lock_timeout
    text = os.environ.get("VOLCTL_LOCK_TIMEOUT")
    try:
        return float(text) if text else LOCK_TIMEOUT
    except ValueError as error:
        raise UsageError(f"VOLCTL_LOCK_TIMEOUT is {text!r}, not a number of seconds") from error


def prepare(where: Places) -> None:
    """The state directory and what belongs in it, private to its owner."""
    try:
        _make(where.state)
        _refuse_writable(where.state)
        for directory in (where.locks, where.images, where.volumes):
            _make(directory)
    except PermissionError as error:
        raise AccessError(
            f"the state directory {where.state} may not be used by you",
            hint="say VOLCTL_STATE_DIR=DIR, or run as its owner",
        ) from error
    except OSError as error:
        raise ConfigError(f"the state directory {where.state} cannot be used: {error.strerror}") from error


def _refuse_writable(state: Path) -> None:
    if state.stat().st_mode & stat.S_IWOTH:
        raise ConfigError(f"the state directory {state} is writable by everybody", hint=f"chmod 700 {state}")


def _make(directory: Path) -> None:
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if not directory.is_dir():
            raise
        return
    keep_owner(directory)


def _nothing_of_ours(config: Config, where: Places) -> None:
    """No new database where storage of an old one lies: its rows would be lost without a word."""
    unknown = Backends(config, "", where.state)
    for backend in config.backends:
        unknown.refuse_claimed(backend.name, where.database)


def _settle(session: Session, *, reads: bool) -> None:
    """Undo or complete what commands that are gone left behind."""
    try:
        if reads:
            with interrupt.budget(READ_SETTLE):
                said = session.engine.settle()
        else:
            said = session.engine.settle()
            session.catch_up()
            _prune(session)
    except TimedOut:
        if not reads:
            raise
        interrupt.check()
        said = [f"not everything was settled within {READ_SETTLE:g} s; the next command goes on"]
    except NoSpaceError as error:
        if not reads:
            raise
        said = [f"not everything was settled: {error.message}"]
    for line in said:
        session.watcher.warn(f"settled: {line}")


def _prune(session: Session) -> None:
    """Forget ended flows and events of more than `history_days` ago."""
    before = datetime.now(UTC) - timedelta(days=session.env.config.history_days)
    text = before.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    with session.store.read() as tx:
        old = journal.has_older(tx, text) or events.has_older(tx, text)
    if old:
        with session.store.write() as tx:
            journal.prune(tx, text)
            events.prune(tx, text)
