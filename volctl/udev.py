"""Device nodes: wait for one with a deadline, and say who holds one once udev has looked at it.

Sources: udev(7), pyudev.Monitor.
"""

from __future__ import annotations

import time
from pathlib import Path

from volctl import interrupt
from volctl.errors import BackendError

WAIT = 10.0
_LOOKS = 3.0  # seconds for udev, which looks at every device that appears or was written


def wait_for(path: Path, seconds: float = WAIT) -> None:
    """Until the block device is there; `BackendError` when the wait is over."""
    if path.is_block_device():
        return
    import pyudev

    monitor = pyudev.Monitor.from_netlink(pyudev.Context())
    monitor.filter_by("block")
    monitor.start()
    end = time.monotonic() + seconds
    while not path.is_block_device():
        interrupt.check()
        if time.monotonic() > end:
            raise BackendError(f"{path} did not appear within {seconds:g} s", hint="is udev running? see udevadm(8)")
        monitor.poll(0.1)


def holders(node: Path) -> list[str]:
    """Who holds the device, for a person to read; udev's passing looks are waited for and do not count."""
    from volctl.files import device_holders
    from volctl.files.device import PROBES

    end = time.monotonic() + _LOOKS
    while True:
        found = device_holders(node.resolve()) if node.is_block_device() else []  # /proc has no symlinks
        lasting = [holder for holder in found if not holder.startswith(PROBES)]
        if lasting or not found or time.monotonic() > end:
            return lasting
        interrupt.pause(0.05)
