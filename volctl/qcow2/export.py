"""A qcow2 file as a block device: qemu-storage-daemon opens it, and the kernel makes its disk a device.

Two ways: nbd, and FUSE with a loop device over it. Where the daemon or what it showed is gone (a reboot, a
kill), so is the device.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from volctl.backend import Attached
from volctl.errors import MissingError
from volctl.files import object_named, os_open, translated
from volctl.files.device import BlockDevice
from volctl.model import Object
from volctl.qcow2 import fuse, nbd
from volctl.qcow2.daemon import PROGRAM, RUN, Daemon, other_file
from volctl.qcow2.fuse import Fuse
from volctl.qcow2.nbd import Nbd
from volctl.records import record

__all__ = ["PROGRAM", "Export", "attached", "devices", "means"]


def means() -> str:
    """How volumes become devices here, for a person to read."""
    if nbd.loadable():
        return "nbd"
    return "a loop device over FUSE" if fuse.there() else "none: there is neither nbd nor /dev/fuse"


def devices(database: str, pool: str) -> dict[Object, Attached]:
    """The devices of the volumes in a pool's directory, also of what is gone, and for who may look there the disks
    that are shown without a device, which somebody took away.

    Where the daemon is gone as well nobody knows whose the device was: it is told of any pool.
    """
    directory, found = RUN / database, dict[Object, Attached]()
    with suppress(OSError):
        for disk in directory.iterdir():
            if target := _of(disk, pool):
                found[target] = Attached(str(disk), False)
    for disk, device in chain(fuse.devices(), nbd.marked()):
        if disk.parent == directory and (target := _of(disk, pool)):
            found[target] = attached(device)
    return found


def attached(device: BlockDevice) -> Attached:
    return Attached(str(device.node), device.read_only, device.sector_size)


def _of(disk: Path, pool: str) -> Object | None:
    """The volume of a pool whose disk this is."""
    target = object_named(disk.name)
    return target if target and Daemon(disk.parent.name, disk.name).is_of(Path(pool, disk.name)) else None


@record
class Export:
    """Of the volume in the file at `path`. Its daemon may be at work for a copy of the pool: that one is let alone."""

    daemon: Daemon
    path: Path

    @classmethod
    def of(cls, database: str, path: Path) -> Export:
        return cls(Daemon(database, path.name), path)

    @property
    def _ways(self) -> tuple[Nbd, Fuse]:
        return Nbd(self.daemon), Fuse(self.daemon)

    # -- look

    def _any(self) -> tuple[Nbd | Fuse, BlockDevice] | None:
        """The way that was taken, and its device, whosever it is."""
        return next(((way, device) for way in self._ways if (device := way.device())), None)

    def _found(self) -> tuple[Nbd | Fuse, BlockDevice] | None:
        """The same, if it is ours."""
        found = self._any()
        return found if found and self.daemon.is_of(self.path) else None

    def device(self) -> BlockDevice | None:
        """From the kernel's tables; needs no rights."""
        found = self._found()
        return found[1] if found else None

    def live(self) -> BlockDevice | None:
        """The device, if there is a disk behind it, and that is our file's."""
        found = self._any()
        return found[1] if found and found[0].lives() and self.daemon.works_on(self.path) else None

    def check_file(self) -> None:
        """`InUseError` if the disk behind the device is another file's: somebody put ours there since."""
        if (found := self._found()) and found[0].lives() and not self.daemon.works_on(self.path):
            raise other_file(self.daemon.name, self.path)

    def users(self) -> list[str]:
        """Who holds the device, for a person to read; itself if it works, whatever it shows."""
        if (found := self._found()) is None:
            return []
        way, device = found
        if not way.lives():
            return device.holders()
        return [str(device.node) if self.live() else f"{device.node}, which shows another file"]

    # -- start and stop

    def attach(self, path: Path, below: Sequence[Path], *, read_only: bool, sector_size: int | None) -> BlockDevice:
        """A device over a file and exactly these files below it, whatever their headers name."""
        if not self.daemon.is_of(path):
            raise other_file(self.daemon.name, path)
        way: Nbd | Fuse
        if nbd.there():
            way = Nbd(self.daemon)
        elif fuse.there():
            way = Fuse(self.daemon)
        else:
            raise MissingError(
                "a qcow2 file becomes a device by nbd or by FUSE, and this kernel has neither",
                hint="modprobe nbd, or modprobe fuse",
            )
        return way.attach([path, *below], read_only=read_only, sector_size=sector_size)

    def detach(self) -> None:
        """Take device, daemon and disk away. `InUseError` names who holds the device, and leaves all."""
        while found := self._found():
            way, device = found
            self.daemon.check()
            way.release(device)
        self.stop()

    def stop(self) -> None:
        """End the daemon, which writes what it knows, and what is left of it; there may be none."""
        nbd_, fuse_ = self._ways
        if os.path.lexists(self.daemon.disk) or fuse_.mounted():
            if not self.daemon.is_of(self.path):
                return
            self.check_file()
            with translated(f"remove {self.daemon.disk}"):
                self.daemon.end()
                fuse_.clear()
                nbd_.clear()
                for path in (self.daemon.socket, self.daemon.disk):
                    path.unlink(missing_ok=True)
        with suppress(OSError):  # other volumes are attached; or an attach died when it had made no more than this
            self.daemon.disk.parent.rmdir()

    # -- while it is attached

    def grow(self, path: Path, size: int) -> None:
        """The disk in the file at `path`, to `size` bytes; the device sees it by `resize`."""
        if found := self._found():
            found[0].grow(path, size)
            self.flush()

    def resize(self, path: Path) -> None:
        """Let the device have the size of its disk."""
        if found := self._found():
            found[0].resize(found[1], path)

    def switch(self, path: Path) -> None:
        """From one instant on, write into the empty file at `path`, which lies over the present one."""
        self.flush()
        with self.daemon.changing("take a snapshot of") as monitor:
            self.daemon.go_on(monitor, path)

    def flush(self) -> None:
        """What was written to the device reaches the file."""
        if (device := self.live()) and not device.read_only:
            self.daemon.check()
            with translated(f"flush {device.node}"), os_open(device.node, os.O_RDWR | os.O_CLOEXEC) as fd:
                os.fsync(fd)
