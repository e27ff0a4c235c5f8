"""What is in an LV: zeroed, copied, compared, in steps between which an interruption is heard.

Sources: BLKZEROOUT and BLKDISCARD in linux/fs.h; the kernel takes ranges of whole sectors.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from volctl import interrupt
from volctl.errors import AccessError, BackendError, InUseError, NoSpaceError, VolctlError
from volctl.model import MiB

BLKDISCARD, BLKZEROOUT = 0x1277, 0x127F
STEP = 32 * MiB  # of zeroing: a slow disk writes it in a second
CHUNK = 4 * MiB  # of copying
_ERRORS: dict[int, type[VolctlError]] = {
    errno.ENOSPC: NoSpaceError,
    errno.EBUSY: InUseError,
    errno.EACCES: AccessError,
    errno.EPERM: AccessError,
}


@contextmanager
def device(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A block device, open; what was done to it is durable at the end if `flags` let one write."""
    with _translated(path):
        fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
        if flags & os.O_RDWR:
            with _translated(path):
                os.fsync(fd)
    finally:
        os.close(fd)


def flush(path: Path) -> None:
    """What was written to a disk, by whomever, is durable."""
    with device(path) as fd, _translated(path):
        os.fsync(fd)


@contextmanager
def _translated(what: Path | int) -> Iterator[None]:
    """OSErrors inside become ours: ENOSPC is the thin pool's, EBUSY somebody else's exclusive use."""
    try:
        yield
    except OSError as error:
        kind = _ERRORS.get(error.errno or 0, BackendError)
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else what
        raise kind(f"{path}: {error.strerror or error}") from error


def size(fd: int) -> int:
    """Bytes of an open device."""
    return os.lseek(fd, 0, os.SEEK_END)


def zero(fd: int, start: int, end: int) -> None:
    """The range [start, end) reads as zeros; its blocks stay allocated."""
    with _translated(fd):
        _ranges(fd, BLKZEROOUT, start, end)


def discard(fd: int, start: int, end: int) -> None:
    """Tell the disks that a range is unused; those that cannot do that change nothing."""
    with _translated(fd):
        try:
            _ranges(fd, BLKDISCARD, start, end)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _ranges(fd: int, request: int, start: int, end: int) -> None:
    while start < end:
        interrupt.check()
        step = min(end, start + STEP) - start
        fcntl.ioctl(fd, request, struct.pack("QQ", start, step))
        start += step


def copy(source: int, target: int, length: int, progress: Callable[[int, int], None]) -> None:
    """Copy the first `length` bytes, zeros too. Both are open with O_DIRECT."""
    import mmap

    with _translated(target), mmap.mmap(-1, CHUNK) as buffer, memoryview(buffer) as view:
        for start in range(0, length, CHUNK):
            interrupt.check()
            with view[: min(CHUNK, length - start)] as part:
                _fill(source, part, start)
                _write(target, part, start)
                progress(start + len(part), length)


def make_equal(source: int, target: int, length: int) -> None:
    """As `copy`, but write only what differs, so that a snapshot of `target` need not keep more."""
    import mmap

    with (
        _translated(target),
        mmap.mmap(-1, CHUNK) as ours, memoryview(ours) as wanted,
        mmap.mmap(-1, CHUNK) as theirs, memoryview(theirs) as found,
    ):  # fmt: skip
        for start in range(0, length, CHUNK):
            interrupt.check()
            step = min(CHUNK, length - start)
            with wanted[:step] as want, found[:step] as have:
                _fill(source, want, start)
                _fill(target, have, start)
                _write_different(target, want, have, start)


def _write_different(target: int, want: memoryview, have: memoryview, start: int, piece: int = 64 * 1024) -> None:
    if want == have:
        return
    for at in range(0, len(want), piece):
        with want[at : at + piece] as new, have[at : at + piece] as old:
            if new != old:
                _write(target, new, start + at)


def _fill(fd: int, view: memoryview, offset: int) -> None:
    if os.preadv(fd, [view], offset) != len(view):
        raise BackendError(f"the source ended before {offset + len(view)} bytes")


def _write(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):  # a full pool takes a part, and says so at the next
        with view[done:] as rest:
            done += os.pwritev(fd, [rest], offset + done)
