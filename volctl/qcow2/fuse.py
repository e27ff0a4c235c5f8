"""A loop device over a file that FUSE shows: the disk of a qcow2 file where the kernel has no nbd.

The loop device is buffered: a direct one over FUSE came back with invalid checksums. What was flushed there is
flushed in the file: fdatasync passes through.

Sources: fuse(4), QMP's BlockExportOptionsFuse.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from volctl import command, interrupt, kernel
from volctl.errors import BackendError
from volctl.files import loopdev, os_open
from volctl.files.device import BlockDevice
from volctl.qcow2.daemon import START, Daemon
from volctl.qcow2.qmp import silent
from volctl.records import record

_NODE = Path("/dev/fuse")


def there() -> bool:
    return _NODE.exists()


@record
class Fuse:
    daemon: Daemon

    def device(self) -> BlockDevice | None:
        return next((device for disk, device in devices() if disk == self.daemon.disk), None)

    def lives(self) -> bool:
        """Is there a disk behind the device? Whoever may not look believes it, and so does who is not answered:
        with a daemon that is stopped, to look at the disk is to wait until it goes on.

        The kernel remembers a FUSE file's size for a second, but asks for the room on each statvfs(3),
        of which the daemon knows nothing (ENOSYS).
        """
        if silent(self.daemon.socket):
            return True
        try:
            if not os.stat(self.daemon.disk).st_size:
                return False
            os.statvfs(self.daemon.disk)
        except PermissionError:
            return True
        except OSError as error:
            return error.errno == errno.ENOSYS
        return True

    def attach(self, chain: Sequence[Path], *, read_only: bool, sector_size: int | None) -> BlockDevice:
        export: dict[str, Any] = {"type": "fuse", "id": "disk", "mountpoint": str(self.daemon.disk)}
        export |= {"writable": not read_only, "growable": False, "allow-other": "off"}
        self.daemon.start(chain, export)
        flags = os.O_RDONLY if read_only else os.O_RDWR
        with os_open(self.daemon.disk, flags | os.O_CLOEXEC) as fd:
            return loopdev.attach(fd, self.daemon.name, read_only=read_only, sector_size=sector_size, direct=False)

    def release(self, device: BlockDevice) -> None:
        loopdev.detach(device)

    def clear(self) -> None:
        while self.mounted():
            command.run("umount", "--lazy", "--no-canonicalize", str(self.daemon.disk))

    def mounted(self) -> bool:
        """Also without its daemon, when the file cannot be looked at."""
        return any(mount.point == str(self.daemon.disk) for mount in kernel.mounts())

    def grow(self, path: Path, size: int) -> None:
        """The disk; the device sees it by `resize`."""
        with self.daemon.changing("grow") as monitor:
            monitor.execute("block_resize", {"node-name": self.daemon.go_on(monitor, path), "size": size})

    def resize(self, device: BlockDevice, path: Path) -> None:
        """The kernel remembers the size of the disk for a second."""
        size, end = self.daemon.size(path), time.monotonic() + START
        while device.size != size:
            if time.monotonic() > end:
                raise BackendError(f"{device.node} still has {device.size} bytes, not {size}")
            os.stat(self.daemon.disk)
            loopdev.grow(device)
            interrupt.pause(0.02)


def devices() -> Iterator[tuple[Path, BlockDevice]]:
    """Loop devices and the paths of the files that they are over, which are asked for nothing; needs no rights."""
    for name, path in kernel.loops():
        yield Path(path.removesuffix(kernel.DELETED)), BlockDevice(name)
