"""Which loop devices lie over a file.

The kernel is asked for the file's inode. The path that it prints is that of another mount namespace (a container),
which leads to nothing here, or to another file. Who may not ask goes by that path, and if nothing is there, by the
name alone. A file of a server (FUSE, NFS) is not looked at: the server may be stopped, and who asks waits for ever.

Sources: loop(4), linux/loop.h, drivers/block/loop.c (loop_get_status asks the file as stat(2) does).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from volctl import kernel

INFO = struct.Struct("<5Q4I64s64s32s2Q")  # struct loop_info64
DEVICE, INODE, NUMBER, FLAGS, NAME = 0, 1, 2, 8, 9  # what we read of it; the number is that of a device that it is over
_GET_STATUS64 = 0x4C05
DETACHED = (errno.ENXIO, errno.ENODEV, errno.ENOENT)
_SERVED = re.compile(" - (?:fuse(?!ctl)|nfs|cifs|smb)")  # in a line of mountinfo


def backed_by(file: os.stat_result, name: str, pattern: str = "loop*") -> Iterator[str]:
    """Names of the loop devices over a file of that name."""
    mounts: list[kernel.Mount] | None = None
    for loop, path in kernel.loops(pattern):
        mounts = _mounts() if mounts is None else mounts
        if not _served(path, file, mounts) and _is_over(loop, path, file, name):
            yield loop


def status(at: int) -> list[Any]:
    """The fields of struct loop_info64, of an open device."""
    buffer = bytearray(INFO.size)
    fcntl.ioctl(at, _GET_STATUS64, buffer)
    return list(INFO.unpack(buffer))


def _mounts() -> list[kernel.Mount]:
    """None where nothing is served, as is usual: that is soon seen."""
    return list(kernel.mounts()) if _SERVED.search(kernel.text(Path("/proc/self/mountinfo"))) else []


def _served(path: str, file: os.stat_result, mounts: list[kernel.Mount]) -> bool:
    """Is what lies at `path` of a server, and of another than the file?"""
    over = [mount for mount in mounts if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    mount = max(reversed(over), key=lambda mount: len(mount.point), default=None)
    number = f"{os.major(file.st_dev)}:{os.minor(file.st_dev)}"
    return mount is not None and _SERVED.match(f" - {mount.kind}") is not None and mount.device != number


def _is_over(loop: str, path: str, file: os.stat_result, name: str) -> bool:
    try:
        at = os.open(f"/dev/{loop}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            said = status(at)
        finally:
            os.close(at)
    except OSError as error:
        return error.errno not in DETACHED and _leads_to(path, file, name)
    same_node = said[NUMBER] != 0 and said[NUMBER] == file.st_rdev  # another /dev has other inodes
    return same_node or (said[DEVICE], said[INODE]) == (file.st_dev, file.st_ino)


def _leads_to(path: str, file: os.stat_result, name: str) -> bool:
    try:
        return os.path.samestat(os.stat(path), file)
    except OSError:
        return os.path.basename(path) == name
