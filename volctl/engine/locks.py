"""One lock file per volume, held with flock(2) by the command and inherited by its children.

So "locked" means that the command or a child that works for it lives. A lock is released by closing
only: an explicit unlock would free it under a living child. Whoever holds a file exclusively may
unlink it, and does so at the end; hence, after `flock`, the file held and the file of that name are
compared. What a killed command left is swept away by the next one. A file is made under another name,
given to its owner, and then linked into place: who may not open one may not open the directory.

Who only tidies up locks a file for an instant, under a lock of the directory itself. Who finds a file
locked, and will not wait, looks again under that lock: then it is a command's.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from volctl import command, held, interrupt
from volctl.errors import LockedError, of_os

EXCLUSIVE, SHARED = "exclusive", "shared"
_NEW = ".new"
Names = Mapping[str, str]
"""Lock names (ids of volumes) to their mode."""


class LockSet:
    """Locks held, until `close`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._held: dict[str, tuple[int, str]] = {}

    @property
    def names(self) -> dict[str, str]:
        return {name: mode for name, (_, mode) in self._held.items()}

    def add(self, name: str, descriptor: int, mode: str) -> None:
        self._held[name] = (descriptor, mode)
        held.locks.add(descriptor)

    def close(self) -> None:
        """Let go. The files go, too, unless somebody shares them or a child of ours still works."""
        if self._held and not command.children_left():
            with suppress(OSError), _tidying(self._directory):
                for name, (descriptor, _) in self._held.items():
                    _unlink(descriptor, self._directory / name)
        for descriptor, _ in self._held.values():
            held.locks.discard(descriptor)
            os.close(descriptor)
        self._held.clear()

    def __enter__(self) -> LockSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class LockDirectory:
    """The lock files of one state directory. `own` gives new files their owner."""

    def __init__(self, directory: Path, own: Callable[[Path], None]) -> None:
        self._directory = directory
        self._own = own

    def acquire(self, names: Names, timeout: float) -> LockSet:
        """All of them, in the order of their names, waiting `timeout` seconds in all.

        `LockedError` when the wait is over, `TimedOut` and `Cancelled` as `interrupt.check`.
        """
        end = time.monotonic() + timeout
        locks = LockSet(self._directory)
        try:
            for name in sorted(names):
                locks.add(name, self._wait(name, names[name], end, timeout), names[name])
        except BaseException:
            locks.close()
            raise
        return locks

    def try_acquire(self, names: Names) -> LockSet | None:
        """All of them now, or None."""
        try:
            return self.acquire(names, 0)
        except LockedError:
            return None

    def sweep(self) -> None:
        """Unlink the files of commands that are gone."""
        with os.scandir(self._directory) as found:
            names = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
        for name in names:
            if name.endswith(_NEW):
                _remove(self._directory / name)  # who is making it makes it again
                continue
            with suppress(PermissionError), _tidying(self._directory):
                if (descriptor := self._lock(name, EXCLUSIVE)) is not None:
                    _unlink(descriptor, self._directory / name)
                    os.close(descriptor)

    def _wait(self, name: str, mode: str, end: float, timeout: float) -> int:
        pause = 0.001
        while (descriptor := self._lock(name, mode)) is None:
            if time.monotonic() >= end:
                with _tidying(self._directory):
                    if (descriptor := self._lock(name, mode)) is not None:
                        break
                raise LockedError(
                    f"volume {name} is being worked on by another command (waited {timeout:g} s)",
                    hint="wait for it, or raise --lock-timeout",
                    volume=name,
                )
            interrupt.pause(min(pause, 0.05))
            pause *= 2
        return descriptor

    def _lock(self, name: str, mode: str) -> int | None:
        path = self._directory / name
        flag = fcntl.LOCK_EX if mode == EXCLUSIVE else fcntl.LOCK_SH
        while True:
            descriptor = self._open(path)
            try:
                fcntl.flock(descriptor, flag | fcntl.LOCK_NB)
                if _same(descriptor, path):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            os.close(descriptor)

    def _open(self, path: Path) -> int:
        while True:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._make(path)
            except OSError as error:
                raise of_os(error, f"make the lock {path}") from error

    def _make(self, path: Path) -> None:
        """Unless another command is faster, or sweeps it meanwhile."""
        new = path.with_name(f"{path.name}-{os.getpid()}{_NEW}")
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            with suppress(FileExistsError, FileNotFoundError):
                self._own(new)
                os.link(new, path)
        finally:
            _remove(new)


@contextmanager
def _tidying(directory: Path) -> Iterator[None]:
    """Alone among those who lock files only to unlink them. Nothing is waited for meanwhile."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    held = os.fstat(descriptor)
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _unlink(descriptor: int, path: Path) -> None:
    """Unlink a lock's file, if we can hold it exclusively and it is still the one of that name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # others share it: the last one unlinks
    if _same(descriptor, path):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # what was done under it is done all the same; a sweep tries again
        path.unlink()
