"""Sparse files: share their blocks, copy their data and not their holes, grow them.

Sources: ioctl_ficlonerange(2), lseek(2) (SEEK_DATA), copy_file_range(2), posix_fallocate(3).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from volctl import interrupt
from volctl.errors import BackendError, VolctlError
from volctl.files.directory import os_open
from volctl.model import MiB

FICLONE = 0x40049409
CHUNK, ALLOCATE = 16 * MiB, 256 * MiB  # small enough that `interrupt.check` is heard between two
FLUSH = 128 * MiB  # so that the last fsync, which hears nothing, has little left to do
_CANNOT_SHARE = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY}


def reflink(source: int, target: int) -> bool:
    """Let `target` (empty) share all blocks of `source`; False where that cannot be."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def reflinks(directory: Path) -> bool:
    """Whether files there can share blocks: tried with nameless ones, which no crash leaves behind."""
    try:
        with os_open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC) as source:
            os.write(source, b"volctl" * 1000)
            return can_share(source, directory)
    except OSError:
        return False


def can_share(source: int, directory: Path) -> bool:
    """Whether a new file there could share the blocks of an open file; tried with a nameless one."""
    try:
        with os_open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC) as target:
            return reflink(source, target)
    except OSError:
        return False


def copy(source: int, target: int, progress: Callable[[int, int], None], *, share: bool = True) -> None:
    """Copy the data of a file to the same offsets of one that reads as zeros; holes stay holes.

    `share=False` copies bytes even where the file system would rather share blocks. A block device has no holes.
    """
    length, flushed = length_of(source), 0
    for start, end in _data(source, length):
        while start < end:
            interrupt.check()
            step = _copy_range(source, target, start, min(end - start, CHUNK), share)
            os.posix_fadvise(target, start, step, os.POSIX_FADV_DONTNEED)  # begins to write it back
            start, flushed = start + step, flushed + step
            if flushed >= FLUSH:
                os.fdatasync(target)
                flushed = 0
            progress(start, length)


def length_of(fd: int) -> int:
    """Bytes of an open file or block device."""
    return os.lseek(fd, 0, os.SEEK_END)


def _data(fd: int, length: int) -> Iterator[tuple[int, int]]:
    """The ranges [start, end) that are not holes."""
    end = 0
    while end < length:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.EINVAL:
                yield 0, length
            elif error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, min(end, length)


def _copy_range(source: int, target: int, offset: int, count: int, share: bool) -> int:
    """How many bytes were copied, at least one."""
    if share:
        try:
            if step := os.copy_file_range(source, target, count, offset, offset):
                return step
        except OSError as error:
            if error.errno not in _CANNOT_SHARE:
                raise
    step = os.pwrite(target, os.pread(source, min(count, MiB), offset), offset)
    if not step:
        raise OSError(errno.EIO, f"the source ended at {offset}")
    return step


def grow(fd: int, size: int, *, preallocate: bool) -> None:
    """Make a file `size` bytes long, the new tail zeros; on failure it has its old size again.

    `preallocate` takes the tail's space now. `BackendError` if the file is longer.
    """
    before = os.fstat(fd).st_size
    if size < before:
        raise BackendError(f"a file of {before} bytes is not cut to {size}")
    try:
        if preallocate:
            allocate(fd, before, size)
        os.ftruncate(fd, size)
    except (OSError, VolctlError):
        os.ftruncate(fd, before)
        raise


def allocate(fd: int, start: int, end: int) -> None:
    """Take the space of the range [start, end) now; what is in it stays."""
    for offset in range(start, end, ALLOCATE):
        interrupt.check()
        os.posix_fallocate(fd, offset, min(ALLOCATE, end - offset))
