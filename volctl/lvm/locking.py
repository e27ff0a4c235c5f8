"""One flock per volume group, held round one tool call (and the opening of a device it made) only.

LVM serialises its commands itself, but whoever waits there hears neither signals nor the deadline, and
between activating an LV and opening it another command might deactivate it again.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volctl import interrupt
from volctl.errors import AccessError, LockedError

DIRECTORY = Path("/run/volctl")
PATIENCE = 300.0  # seconds: many commands may stand before us, each with a call of a second


@contextmanager
def locked(group: str) -> Iterator[int]:
    """Hold the lock of a volume group; gives its descriptor, for children to inherit.

    `LockedError` after `PATIENCE` seconds, `AccessError` where the lock cannot be made.
    """
    fd = _open(group)
    try:
        _wait(fd, group)
        yield fd
    finally:
        os.close(fd)  # never an explicit unlock: a child may still hold it


def _open(group: str) -> int:
    """The file stays: one that is never unlinked cannot have two owners."""
    try:
        DIRECTORY.mkdir(mode=0o700, exist_ok=True)
        return os.open(DIRECTORY / f"vg-{group}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise AccessError(f"the lock of volume group {group} cannot be opened: {error}") from error


def _wait(fd: int, group: str) -> None:
    end, pause = time.monotonic() + PATIENCE, 0.002
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                said = f"volume group {group} was busy with other commands for {PATIENCE:g} s"
                raise LockedError(said, hint="look for an LVM command that hangs") from None
        interrupt.pause(pause)
        pause = min(2 * pause, 0.05)
