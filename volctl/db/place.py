"""Whether a database can be in its directory: the kind of the file system, and its room."""

from __future__ import annotations

import os
from pathlib import Path

from volctl import kernel
from volctl.errors import DatabaseError, NoSpaceError

NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs",
}  # fmt: skip
PAGE = 4096  # bytes; of SQLite and of its index in memory
LEAST_ROOM = 1 << 20  # bytes; more than one command's transactions and the index take


def refuse_network(directory: Path) -> None:
    """SQLite's WAL needs shared memory, which network file systems do not give."""
    device = directory.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for mount in kernel.mounts():
        if mount.device == wanted and mount.kind in NETWORK_FILE_SYSTEMS:
            said = f"{directory} is on a network file system ({mount.kind})"
            raise DatabaseError(said, hint="choose a local directory")


def refuse_full(path: Path) -> None:
    """SQLite makes room for its index page by page; blocks that are smaller leave holes, and a hole is a SIGBUS."""
    room = os.statvfs(path.parent)
    if room.f_frsize < PAGE and room.f_bavail * room.f_frsize < LEAST_ROOM:
        raise NoSpaceError(f"there is no room for the database {path}: less than 1 MiB is free", hint="free some space")


def is_full(directory: Path) -> bool:
    """SQLite says `disk I/O error` for several of its files when the disk is full."""
    room = os.statvfs(directory)
    return room.f_bavail == 0 or (room.f_files > 0 and room.f_favail == 0)
