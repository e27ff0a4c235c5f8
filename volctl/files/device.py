"""A block device that we made, whatever kind it is of: what the kernel says of it, and how to let go of it."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from pathlib import Path

from volctl import interrupt
from volctl.errors import InUseError, MissingError
from volctl.files.holders import device_holders
from volctl.records import record

SECTOR_SIZES = (512, 4096)
_PATIENCE = 3.0  # seconds for udev, which looks at every device that changes
GLANCE = 0.3  # seconds for anybody else who only looks, such as another command of ours
PROBES = ("udev", "(udev-worker)", "systemd-udevd", "blkid", "losetup")  # the last opens each loop device that it lists


@record
class BlockDevice:
    """One device, such as `loop3`."""

    name: str

    @property
    def node(self) -> Path:
        return Path("/dev", self.name)

    @property
    def read_only(self) -> bool:
        return self._said("ro") == "1"

    @property
    def sector_size(self) -> int:
        return int(self._said("queue/logical_block_size"))

    @property
    def size(self) -> int:
        """In bytes."""
        return int(self._said("size")) * 512

    def _said(self, what: str) -> str:
        return Path("/sys/block", self.name, what).read_text().strip()

    def await_node(self) -> Path:
        """The kernel or udev makes the node a moment after the device."""
        end = time.monotonic() + _PATIENCE
        while not (self.node.exists() and stat.S_ISBLK(self.node.stat().st_mode)):
            if time.monotonic() > end:
                raise MissingError(f"the kernel has {self.name}, but {self.node} is not there", hint="is /dev mounted?")
            interrupt.pause(0.02)
        return self.node

    def release(self, let_go: Callable[[BlockDevice], bool]) -> None:
        """Take it away by `let_go`, which is False while others have it open.

        `InUseError` names who holds it; it then stays, also when those close it. Passing looks are waited for.
        """
        begun = time.monotonic()
        while (users := self.holders()) or not let_go(self):
            if time.monotonic() > begun + (GLANCE if users else _PATIENCE):
                by = ", ".join(users or device_holders(self.node)) or "a program that cannot be seen from here"
                raise InUseError(f"{self.node} is still in use: {by}", hint="unmount it, or stop what has it open")
            interrupt.pause(0.02)

    def holders(self) -> list[str]:
        """Who holds it for longer than a look."""
        return [user for user in device_holders(self.node) if not user.startswith(PROBES)]
