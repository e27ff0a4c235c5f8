"""The log of dm-log-writes: every write to a device, in the order in which it was sure to be on the disk.

Source: the kernel's Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.root.lvm_rig import run
from tests.root.warm import node

MAGIC, VERSION = 0x6A736677736872, 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
NAME = "logged"


@dataclass(frozen=True, slots=True)
class Entry:
    """`length` bytes for the device's `offset`, which the log has at `place`; or a mark."""

    flags: int
    offset: int
    length: int
    place: int
    mark: str

    @property
    def is_durable(self) -> bool:
        """The disk was told to keep what it has by now."""
        return bool(self.flags & (FLUSH | FUA))


@contextmanager
def logged(disk: Path, log: Path, size: int) -> Iterator[Path]:
    """The first `size` bytes of a disk as a device whose writes go to `log`, too."""
    run("modprobe", "dm-log-writes")
    with node(NAME, f"0 {size // 512} log-writes {disk} {log}") as device:
        yield device
    run("blockdev", "--flushbufs", log)


def mark(text: str) -> None:
    run("dmsetup", "message", NAME, "0", f"mark {text.replace(' ', '_')}")


def entries(log: int) -> Iterator[Entry]:
    """Of an open log, in order."""
    magic, version, count, sector = struct.unpack("<QQQI", os.pread(log, 28, 0))
    assert (magic, version) == (MAGIC, VERSION), "no log of dm-log-writes"
    place = sector
    for _ in range(count):
        first, sectors, flags, told = struct.unpack("<QQQQ", os.pread(log, 32, place))
        text = os.pread(log, told, place + 32).decode() if flags & MARK else ""
        place += sector
        yield Entry(flags, first * sector, sectors * sector, place, text.replace("_", " "))
        place += 0 if flags & DISCARD else sectors * sector


def replay(log: int, entry: Entry, image: int) -> None:
    """Do to the file `image` what was done to the device."""
    if entry.flags & DISCARD:
        os.pwrite(image, bytes(entry.length), entry.offset)
    elif not entry.flags & MARK:
        os.pwrite(image, os.pread(log, entry.length, entry.place), entry.offset)
