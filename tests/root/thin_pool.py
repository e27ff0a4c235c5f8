"""A thin pool as the kernel has it, to fill its metadata without LVM: devices that no LV stands for.

Sources: thin-provisioning.rst (create_thin, delete), linux/dm-ioctl.h.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

from tests.root.lvm_rig import words

DM_TARGET_MSG = 0xC138FD0E
_HEADER = struct.Struct("=3I 2I I i I I I Q 128s 129s 7x")
FIRST = 100000  # LVM counts its own devices from 1


@dataclass(frozen=True, slots=True)
class Pool:
    """Each device takes a block of 4 KiB; the kernel keeps a tenth of them for itself and calls the rest full."""

    group: str
    name: str

    def message(self, text: str) -> None:
        """Send it to the pool's target. OSError if the kernel refuses it."""
        payload = struct.pack("=Q", 0) + text.encode() + b"\0"
        size = _HEADER.size + len(payload)
        device = f"{self.group.replace('-', '--')}-{self.name}-tpool".encode()
        header = _HEADER.pack(4, 0, 0, size, _HEADER.size, 0, 0, 0, 0, 0, 0, device, b"")
        control = os.open("/dev/mapper/control", os.O_RDWR)
        try:
            fcntl.ioctl(control, DM_TARGET_MSG, bytearray(header + payload))
        finally:
            os.close(control)

    def metadata_percent(self) -> float:
        return float(words("lvs", "--noheadings", "-o", "metadata_percent", f"{self.group}/{self.name}")[0])

    def fill_metadata(self, until: float) -> range:
        """Make devices until so many percent are taken, or the kernel makes no more; their numbers."""
        number = FIRST
        while self.metadata_percent() < until:
            for _ in range(8):  # 2 % of the smallest metadata: not past the mark into a pool that takes no message
                try:
                    self.message(f"create_thin {number}")
                except OSError:
                    return range(FIRST, number)
                number += 1
        return range(FIRST, number)

    def forget(self, numbers: range) -> None:
        for number in numbers:
            self.message(f"delete {number}")
