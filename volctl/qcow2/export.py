"""A qcow2 file as a block device: qemu-storage-daemon shows its disk as a raw file, a loop device lies over that.

One daemon for each attached volume, which outlives the command and has none of its locks. It is known
by its command line, which holds the volume's own path under /run; where FUSE, the mount or the daemon
is gone (a reboot, a kill), so is the device. The loop device is buffered: a direct one over FUSE came
back with invalid checksums. What was flushed there is flushed in the file: fdatasync passes through.

Sources: qemu-storage-daemon(1), QMP's block-export-add, blockdev-snapshot and block_resize.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volctl import command, interrupt
from volctl.errors import BackendError, InUseError, MissingError
from volctl.files import device_holders, loopdev, os_open, translated
from volctl.files.loopdev import LoopDevice
from volctl.qcow2.qmp import Monitor, RefusedError, connected
from volctl.records import record

PROGRAM = "qemu-storage-daemon"
RUN = Path("/run/volctl")
START, STOP = 30.0, 60.0  # seconds; what is stopped writes its last tables
_FUSE = Path("/dev/fuse")


def means() -> str:
    """How volumes become devices here, for a person to read."""
    return "a loop device over FUSE" if _FUSE.exists() else "none: there is no /dev/fuse (modprobe fuse)"


@record
class Export:
    """Of the volume `name` of one database. `disk` is the raw file while a daemon shows it."""

    database: str
    name: str

    @property
    def disk(self) -> Path:
        return RUN / self.database / self.name

    @property
    def socket(self) -> Path:
        return self.disk.with_name(f"{self.name}.qmp")

    # -- look

    def device(self) -> LoopDevice | None:
        """The loop device over the disk, from the kernel's tables; needs no rights."""
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # detached meanwhile
                if backing.read_text().removesuffix("\n").removesuffix(" (deleted)") == str(self.disk):
                    return LoopDevice(backing.parent.parent.name)
        return None

    def users(self) -> list[str]:
        """Who holds the device, for a person to read; itself if it works."""
        if (device := self.device()) is None:
            return []
        return [str(device.node)] if self.lives() else device_holders(device.node)

    def lives(self) -> bool:
        """Is there a disk behind the device? Whoever may not look believes it.

        The kernel remembers a FUSE file's size for a second, but asks for the room on each statvfs(3),
        of which the daemon knows nothing (ENOSYS).
        """
        try:
            if not os.stat(self.disk).st_size:
                return False
            os.statvfs(self.disk)
        except PermissionError:
            return True
        except OSError as error:
            return error.errno == errno.ENOSYS
        return True

    def daemons(self) -> list[int]:
        """Process ids, by the command line."""
        return [int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if self._runs_as(pid)]

    def _runs_as(self, pid: str) -> bool:
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.path.basename(words[0]) == PROGRAM.encode() and self._chardev.encode() in words

    @property
    def _chardev(self) -> str:
        return f"socket,id=qmp,path={self.socket},server=on,wait=off"

    # -- start and stop

    def attach(self, path: Path, below: Sequence[Path], *, read_only: bool, sector_size: int | None) -> LoopDevice:
        """A device over a file and exactly these files below it, whatever their headers name."""
        if not _FUSE.exists():
            raise MissingError("there is no /dev/fuse, and a qcow2 file needs it to be a device", hint="modprobe fuse")
        with translated(f"make {self.disk}"):
            self.disk.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.disk.touch(mode=0o600)
        export = {
            "type": "fuse", "id": "disk", "node-name": "disk", "mountpoint": str(self.disk),
            "writable": not read_only, "growable": False, "allow-other": "off",
        }  # fmt: skip
        command.run_server(
            PROGRAM, "--daemonize",
            "--chardev", self._chardev,
            "--monitor", "chardev=qmp",
            "--blockdev", json.dumps(_node("disk", [path, *below])),
            "--export", json.dumps(export),
            timeout=START,
        )  # fmt: skip
        flags = os.O_RDONLY if read_only else os.O_RDWR
        with os_open(self.disk, flags | os.O_CLOEXEC) as fd:
            return loopdev.attach(fd, self.name, read_only=read_only, sector_size=sector_size, direct=False)

    def detach(self) -> None:
        """Take device, daemon and disk away. `InUseError` names who holds the device, and leaves all."""
        while device := self.device():
            loopdev.detach(device)
        self.stop()

    def stop(self) -> None:
        """End the daemon, which writes what it knows, and what is left of it; there may be none."""
        if not (os.path.lexists(self.disk) or self._mounted()):  # without its daemon it cannot be looked at
            return
        for pid in self.daemons():
            self._end(pid)
        with translated(f"remove {self.disk}"):
            while self._mounted():
                command.run("umount", "--lazy", "--no-canonicalize", str(self.disk))
            for path in (self.socket, self.disk):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # other volumes are attached
                self.disk.parent.rmdir()

    def _end(self, pid: int) -> None:
        end = time.monotonic() + STOP
        with suppress(ProcessLookupError), _process(pid) as process:
            if self._runs_as(str(pid)):
                signal.pidfd_send_signal(process, signal.SIGTERM)
            while not select.select([process], [], [], 0.05)[0]:
                interrupt.check()
                if time.monotonic() > end:
                    raise BackendError(f"{PROGRAM} (pid {pid}) of {self.name} does not end within {STOP:g} s")

    def _mounted(self) -> bool:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return any(line.split()[4] == str(self.disk) for line in lines)

    # -- while it is attached

    def grow(self, size: int) -> None:
        """The disk, to `size` bytes; the device sees it by `resize`."""
        with self._changing("grow") as (monitor, node):
            monitor.execute("block_resize", {"node-name": node, "size": size})
        self.flush()

    def resize(self, device: LoopDevice) -> None:
        """Let the device see the size that the disk has now, which the kernel remembers for a second."""
        with self._changing("grow") as (monitor, node):
            nodes = monitor.execute("query-named-block-nodes", {"flat": True})
        size = next(each["image"]["virtual-size"] for each in nodes if each["node-name"] == node)
        end = time.monotonic() + START
        while device.size != size:
            if time.monotonic() > end:
                raise BackendError(f"{device.node} still has {device.size} bytes, not {size}")
            os.stat(self.disk)
            loopdev.grow(device)
            interrupt.pause(0.02)

    def switch(self, path: Path) -> None:
        """From one instant on, write into the empty file at `path`, which lies over the present one."""
        self.flush()
        with self._changing("take a snapshot of") as (monitor, node):
            overlay = f"over-{os.stat(path).st_ino}"
            monitor.execute("blockdev-add", _node(overlay, [path]))
            monitor.execute("blockdev-snapshot", {"node": node, "overlay": overlay})

    @contextmanager
    def _changing(self, what: str) -> Iterator[tuple[Monitor, str]]:
        """The monitor, and the node that is written to."""
        try:
            with connected(self.socket) as monitor:
                (export,) = monitor.execute("query-block-exports")
                yield monitor, export["node-name"]
        except RefusedError as error:
            raise InUseError(
                f"cannot {what} {self.name} while it is attached: {error}", hint="detach it first"
            ) from error

    def flush(self) -> None:
        """What was written to the device reaches the file."""
        if (device := self.device()) and not device.read_only:
            with translated(f"flush {device.node}"), os_open(device.node, os.O_RDWR | os.O_CLOEXEC) as fd:
                os.fsync(fd)


def _node(name: str, chain: Sequence[Path], *, writes: bool = True) -> dict[str, Any]:
    """A qcow2 file and, spelt out, those below it. The first is written to also by growing a read-only device."""
    path, *below = chain
    node: dict[str, Any] = {
        "driver": "qcow2",
        "read-only": not writes,
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "read-only": not writes},
        "backing": _node("", below, writes=False) if below else None,
    }
    return node | ({"node-name": name} if name else {})


@contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor of a process, which can be read from when it has ended (pidfd_open(2))."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)
