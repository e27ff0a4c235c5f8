"""Loop devices over the files of volumes: attached, found again, grown and detached.

The kernel is asked itself, not through losetup: LOOP_CONFIGURE makes a device with its backing file,
sector size and flags in one step, which a crash leaves done or not begun, and it takes our mark, the
object's name, as the device's name of its file. So a device that somebody else put over the same file
is never taken for ours.

Sources: loop(4), linux/loop.h, drivers/block/loop.c (LOOP_CONFIGURE is of Linux 5.8).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from volctl import interrupt, kernel
from volctl.errors import AccessError, BackendError, MissingError
from volctl.files.backing import DETACHED, FLAGS, INFO, NAME, backed_by, status
from volctl.files.device import SECTOR_SIZES, BlockDevice
from volctl.files.directory import os_open

_CLR_FD, _SET_STATUS64, _SET_CAPACITY, _CONFIGURE = 0x4C01, 0x4C04, 0x4C07, 0x4C0A
_GET_FREE = 0x4C82
_READ_ONLY, _AUTOCLEAR, _DIRECT_IO = 1, 4, 16
_CONTROL = Path("/dev/loop-control")
_TRIES = 100  # another program may take the free device that we were told of


def attach(fd: int, mark: str, *, read_only: bool, sector_size: int | None, direct: bool = True) -> BlockDevice:
    """A new device over the file open at `fd`, of its size; `direct` where its file system can.

    `AccessError` without rights, `MissingError` where there are no loop devices.
    """
    flags = (_DIRECT_IO if direct else 0) | (_READ_ONLY if read_only else 0)
    info = INFO.pack(*[0] * FLAGS, flags, mark.encode(), b"", b"", 0, 0)
    config = struct.pack("<2I", fd, sector_size or SECTOR_SIZES[0]) + info + bytes(64)
    with _allowed(), os_open(_CONTROL, os.O_RDWR | os.O_CLOEXEC) as control:
        for _ in range(_TRIES):
            interrupt.check()
            device = BlockDevice(f"loop{fcntl.ioctl(control, _GET_FREE)}")
            if _configure(device, config):
                return device
    raise BackendError(f"every loop device that was free was taken by others, {_TRIES} times")


def _configure(device: BlockDevice, config: bytes) -> bool:
    """False if another program was faster."""
    with os_open(device.await_node(), os.O_RDWR | os.O_CLOEXEC) as at:
        try:
            fcntl.ioctl(at, _CONFIGURE, config)
        except OSError as error:
            if error.errno == errno.EBUSY:
                return False
            if error.errno == errno.ENOTTY:
                raise MissingError("loop devices need Linux 5.8 or later") from error
            raise
    return True


@contextmanager
def _allowed() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise AccessError(
            f"loop devices may not be used: {error.strerror}", hint="loop devices are for root"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
        raise MissingError(f"there are no loop devices here: {error}", hint="modprobe loop") from error


def find(file: os.stat_result, mark: str, first: str | None = None) -> BlockDevice | None:
    """Our device over the file of the name `mark`; `first` (such as `/dev/loop3`) is looked at before all others.

    A device over the file that cannot be asked for its mark is taken for ours.
    """
    names = [os.path.basename(first)] if first else []
    return next((device for name in names for device in _ours(file, mark, name)), None) or next(_ours(file, mark), None)


def _ours(file: os.stat_result, mark: str, pattern: str = "loop*") -> Iterator[BlockDevice]:
    for device in map(BlockDevice, backed_by(file, mark, pattern)):
        if _mark(device) in (mark, None):
            yield device


def marked(directory: str) -> Iterator[tuple[str, BlockDevice]]:
    """Devices that bear the name of their file as our mark, with that name, over files in `directory` (as the
    kernel calls it), also over files that are gone. Without the right to ask for the mark, none."""
    for device, path in kernel.loops():
        place, name = os.path.split(path.removesuffix(kernel.DELETED))
        if place == directory and _mark(BlockDevice(device)) == name:
            yield name, BlockDevice(device)


def _mark(device: BlockDevice) -> str | None:
    """None if it cannot be asked: it is not for us, or this is a bad moment."""
    try:
        with os_open(device.node, os.O_RDONLY | os.O_CLOEXEC) as at:
            name: bytes = status(at)[NAME]
            return name.rstrip(b"\0").decode(errors="replace")
    except OSError as error:
        return "" if error.errno in DETACHED else None


def grow(device: BlockDevice) -> None:
    """Let it see the size that its file has now."""
    with _allowed(), os_open(device.node, os.O_RDONLY | os.O_CLOEXEC) as at:
        fcntl.ioctl(at, _SET_CAPACITY)


def detach(device: BlockDevice) -> None:
    """Take it away. `InUseError` names who holds it; it then stays, also when those let go."""
    device.release(_released)


def _released(device: BlockDevice) -> bool:
    """Did the kernel let it go? When others have it open it says so too, and takes it away under them later."""
    with _allowed(), os_open(device.node, os.O_RDONLY | os.O_CLOEXEC) as at:
        try:
            fcntl.ioctl(at, _CLR_FD)
            said = status(at)
        except OSError as error:
            if error.errno == errno.ENXIO:  # it has no file any more
                return True
            raise
        said[FLAGS] &= ~_AUTOCLEAR
        fcntl.ioctl(at, _SET_STATUS64, INFO.pack(*said))
    return False
