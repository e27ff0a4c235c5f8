"""An nbd device: the kernel itself talks to the daemon, over a socket that was greeted here and handed over.

It is made, grown and taken away by netlink, so that no process needs to stay for it; a crash leaves each step
done or not begun. The kernel keeps our mark, the volume's path under /run, as the device's backend (Linux
5.14), and refuses to touch one with another. When the daemon dies, the device is there and all that is asked
of it fails, after `WAIT` seconds; `lives` tells at once, since the kernel lists who listens.

Sources: linux/nbd-netlink.h, drivers/block/nbd.c, the NBD protocol (doc/proto.md of nbd), unix(7).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volctl import command, interrupt, kernel
from volctl.errors import AccessError, BackendError, InternalError, MissingError
from volctl.files import os_open
from volctl.files.device import SECTOR_SIZES, BlockDevice
from volctl.qcow2 import netlink
from volctl.qcow2.daemon import START, Daemon
from volctl.qcow2.netlink import Family, attribute, nested
from volctl.qcow2.qmp import Monitor
from volctl.records import record

WAIT = 30  # seconds that what is asked of a device waits for another connection, as for a disk that is reset
AGAIN = 1  # second after which the kernel asks again for what it lost by a change of connections
QUIET = 0.5  # seconds for what it asked before it knew that
NOTICE = 5.0  # seconds for the kernel to notice that a connection was closed
_CONNECT, _DISCONNECT, _RECONFIGURE = 1, 2, 3
_INDEX, _SIZE, _BLOCK_SIZE, _TIMEOUT, _SERVER_FLAGS, _CLIENT_FLAGS = 1, 2, 3, 4, 5, 6
_SOCKETS, _DEAD_TIMEOUT, _BACKEND, _SOCKET_ITEM, _SOCKET_FD = 7, 8, 10, 1, 1
_DISCONNECT_ON_CLOSE = 2
_REREAD_PARTITIONS = 0x125F  # BLKRRPART
_GROUP = b"nbd_mc_group"
_MAGIC, _OPTION, _EXPORT_NAME, _FIXED_NO_ZEROES = b"NBDMAGICIHAVEOPT", b"IHAVEOPT", 1, 3
_MODULE, _UNIX_SOCKETS = Path("/sys/module/nbd"), Path("/proc/net/unix")
_EXPORT = "disk"


def there() -> bool:
    """Has this kernel nbd, as we need it? Its module is loaded for that, where there is one and one may."""
    if not _MODULE.exists():
        with suppress(MissingError):
            command.run("modprobe", "--quiet", "nbd", ok=range(-64, 256))
    with netlink.family("nbd") as found:
        return found is not None and found.most >= _BACKEND


def loadable() -> bool:
    """The same, without loading anything."""
    if _MODULE.exists():
        return there()
    with suppress(MissingError):
        return command.run("modprobe", "--quiet", "--dry-run", "nbd", ok=range(-64, 256)).status == 0
    return False


@record
class Nbd:
    daemon: Daemon

    @property
    def server(self) -> Path:
        return self.daemon.disk.with_name(f"{self.daemon.name}.nbd")

    def device(self) -> BlockDevice | None:
        return next((device for mark, device in marked() if mark == self.daemon.disk), None)

    def lives(self) -> bool:
        """Does somebody listen at the daemon's socket? Another network namespace does not list it."""
        lines = kernel.lines(_UNIX_SOCKETS)
        return any(line.endswith(f" {self.server}") for line in lines) or bool(self.daemon.ids())

    def attach(self, chain: Sequence[Path], *, read_only: bool, sector_size: int | None) -> BlockDevice:
        server = f"addr.type=unix,addr.path={self.server}"
        self.daemon.start(chain, _export(read_only), "--nbd-server", server)
        with self._greeted() as (channel, size, flags), _kernel() as family:
            answer = family.ask(
                _CONNECT,
                _number(_SIZE, size),
                _number(_BLOCK_SIZE, sector_size or SECTOR_SIZES[0]),
                _number(_SERVER_FLAGS, flags),
                _number(_DEAD_TIMEOUT, WAIT),
                self._mark,
                _socket(channel),
            )
        device = BlockDevice(f"nbd{netlink.number_of(answer[_INDEX])}")
        device.await_node()
        return device

    @contextmanager
    def _greeted(self) -> Iterator[tuple[socket.socket, int, int]]:
        """A connection that only requests are to follow on, the size of the disk in bytes, and the server's flags."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(START)
            try:
                channel.connect(str(self.server))
                with channel.makefile("rb") as stream:
                    if stream.read(18)[:16] != _MAGIC:
                        raise BackendError(f"what listens at {self.server} does not speak NBD")
                    name = _EXPORT.encode()
                    asked = struct.pack(">I8sII", _FIXED_NO_ZEROES, _OPTION, _EXPORT_NAME, len(name)) + name
                    channel.sendall(asked)
                    size, flags = struct.unpack(">QH", stream.read(10))
            except (OSError, struct.error) as error:
                raise BackendError(f"the storage daemon at {self.server} does not answer: {error}") from error
            yield channel, size, flags

    @property
    def _mark(self) -> bytes:
        return attribute(_BACKEND, bytes(self.daemon.disk) + b"\0")

    def release(self, device: BlockDevice) -> None:
        """Without its daemon it is cut off: nothing that was written to it since can be kept."""
        device.release(self._close if self.lives() else _cut)
        _forget_partitions(device)

    def _close(self, device: BlockDevice) -> bool:
        """The kernel lets it go with the last that closes it, after it wrote what it kept."""
        try:
            with os_open(device.node, os.O_RDONLY | os.O_CLOEXEC):
                self._reconfigure(device, _number(_CLIENT_FLAGS, _DISCONNECT_ON_CLOSE))
            if self.device() is not None:
                self._reconfigure(device, _number(_CLIENT_FLAGS, 0))
        except (BackendError, OSError):
            if self.device() is not None:
                raise
        return self.device() is None  # it is there for a moment longer if udev looked at it

    def clear(self) -> None:
        self.server.unlink(missing_ok=True)

    def grow(self, path: Path, size: int) -> None:
        """The disk and the device. A server of NBD knows one size for ever: the disk is shown anew.

        What is asked of the device meanwhile waits. An answer that was under way is lost, and the kernel asks
        again when its time is over, so that is made short before.
        """
        device = self.device()
        if device is None:
            raise InternalError(f"{self.daemon.name} has no device")
        with self.daemon.changing("grow") as monitor:
            node = self.daemon.go_on(monitor, path)
            self._reconfigure(device, _number(_TIMEOUT, AGAIN))
            _await_quiet(device)
            with _kernel() as ear:
                ear.listen(_GROUP)
                if self._withdraw(monitor):
                    _await_dead(ear, device)
            try:
                monitor.execute("block_resize", {"node-name": node, "size": size})
            finally:
                self._show(monitor, node, device)
        self._reconfigure(device, _number(_SIZE, size))

    def _withdraw(self, monitor: Monitor) -> bool:
        """Show the disk no more; False if it was not shown, since a command was killed."""
        if not monitor.execute("query-block-exports"):
            return False
        monitor.execute("block-export-del", {"id": _EXPORT, "mode": "hard"})
        end = time.monotonic() + START
        while monitor.execute("query-block-exports"):
            if time.monotonic() > end:
                raise BackendError(f"the storage daemon at {self.server} does not let go of the disk")
            interrupt.pause(0.01)
        return True

    def _show(self, monitor: Monitor, node: str, device: BlockDevice) -> None:
        """The short time ends before the new connection begins, which would take it for a limit of its own."""
        monitor.execute("block-export-add", _export(device.read_only) | {"node-name": node})
        with self._greeted() as (channel, _, _):
            self._reconfigure(device, _number(_TIMEOUT, 0), _socket(channel))

    def _reconfigure(self, device: BlockDevice, *attributes: bytes) -> None:
        with _kernel() as family:
            family.ask(_RECONFIGURE, _index(device), self._mark, *attributes)

    def resize(self, device: BlockDevice, path: Path) -> None:
        """`grow` told the kernel."""


def marked() -> Iterator[tuple[Path, BlockDevice]]:
    """Marks and devices, from the kernel's tables; needs no rights."""
    for backend in Path("/sys/block").glob("nbd*/backend"):
        with suppress(OSError):  # detached meanwhile
            yield Path(kernel.text(backend)), BlockDevice(backend.parent.name)


@contextmanager
def _kernel() -> Iterator[Family]:
    with netlink.family("nbd") as found:
        if found is None:
            raise MissingError("this kernel has no nbd any more", hint="modprobe nbd")
        try:
            yield found
        except PermissionError as error:
            raise AccessError("nbd devices may not be used", hint="nbd devices are for root") from error
        except OSError as error:
            raise BackendError(f"the kernel will not do this with an nbd device: {error.strerror}") from error


def _cut(device: BlockDevice) -> bool:
    with _kernel() as family:
        family.ask(_DISCONNECT, _index(device))
    return not Path("/sys/block", device.name, "backend").exists()


def _forget_partitions(device: BlockDevice) -> None:
    """The kernel shows those of the disk that was there until it looks again."""
    if any(Path("/sys/block", device.name).glob("*/partition")):
        with suppress(OSError), os_open(device.node, os.O_RDONLY | os.O_CLOEXEC) as fd:  # another may have it already
            fcntl.ioctl(fd, _REREAD_PARTITIONS)


def _await_quiet(device: BlockDevice) -> None:
    """Until nothing is under way that was asked for earlier; a device that is never quiet has asked again since."""
    end = time.monotonic() + QUIET
    while any(map(int, Path("/sys/block", device.name, "inflight").read_text().split())) and time.monotonic() < end:
        interrupt.pause(0.02)


def _await_dead(ear: Family, device: BlockDevice) -> None:
    """Until the kernel has seen that the connection is closed: before that it takes no other in its place.

    It says nothing if it had none any more, since a command was killed before it gave it another.
    """
    end = time.monotonic() + NOTICE
    while (left := end - time.monotonic()) > 0:
        interrupt.check()
        told = ear.heard(min(left, 0.1))
        if told and told.get(_INDEX) == _number_of(device):
            return


def _export(read_only: bool) -> dict[str, Any]:
    return {"type": "nbd", "id": _EXPORT, "name": _EXPORT, "writable": not read_only}


def _index(device: BlockDevice) -> bytes:
    return attribute(_INDEX, _number_of(device))


def _number_of(device: BlockDevice) -> bytes:
    return struct.pack("=I", int(device.name.removeprefix("nbd")))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=Q", value))


def _socket(channel: socket.socket) -> bytes:
    return nested(_SOCKETS, nested(_SOCKET_ITEM, attribute(_SOCKET_FD, struct.pack("=I", channel.fileno()))))
