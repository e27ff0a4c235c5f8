"""The image store: our own copies of registered images, one file an image, named by its id."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from volctl import files
from volctl.errors import NotFoundError


def copy_in(image: int, target: Path, progress: Callable[[int, int], None]) -> None:
    """Copy the open file `image` to `target`, holes kept, durable on return; anew if it is there."""
    with files.translated(f"copy the image to {target}"):
        target.unlink(missing_ok=True)
        with files.os_open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
            os.ftruncate(fd, files.length_of(image))
            files.copy(image, fd, progress)
            _keep_owner(fd, target.parent)
            os.fsync(fd)
        _sync(target.parent)


def _keep_owner(fd: int, directory: Path) -> None:
    """As root in a state directory of somebody else, the copy is theirs."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)


@contextmanager
def opened(target: Path, doing: str) -> Iterator[int]:
    """Our own file, made if it is not there; durable when the block ends well."""
    with files.translated(doing):
        with files.os_open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC) as fd:
            _keep_owner(fd, target.parent)
            yield fd
            os.fsync(fd)
        _sync(target.parent)


def keep(source: Path, target: Path) -> None:
    """Give a file of the store its final name; done already is success."""
    with files.translated(f"rename {source}"):
        if source.exists():
            source.rename(target)
        _sync(target.parent)


def remove(target: Path) -> None:
    """Delete our copy; not there is success."""
    with files.translated(f"delete {target}"):
        target.unlink(missing_ok=True)
        _sync(target.parent)


def identity(path: Path) -> dict[str, int]:
    """What tells whether a file is still the one that was checked."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no image file {path}") from error
    return identity_of(found)


def identity_of(found: os.stat_result) -> dict[str, int]:
    """Device, inode, size in bytes, times in ns."""
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _sync(directory: Path) -> None:
    with files.os_open(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
