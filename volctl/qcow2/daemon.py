"""qemu-storage-daemon: it has the qcow2 file of one attached volume open, and shows its disk to a way of devices.

It outlives the command and has none of its locks, and is known by its command line, which holds the volume's
own path under /run. That is the same for the copy of a state directory, so the files that it has open are looked
at, too. Not qemu-nbd: that has no monitor, and so no snapshot of a volume in use.

Sources: qemu-storage-daemon(1), QMP's blockdev-snapshot and block_resize.
"""

from __future__ import annotations

import os
import select
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volctl import command, interrupt
from volctl.errors import BackendError, InUseError
from volctl.files import os_open, translated
from volctl.qcow2.header import is_blank, read
from volctl.qcow2.links import is_layer
from volctl.qcow2.qmp import Monitor, RefusedError, connected, listener, silent
from volctl.records import record

PROGRAM = "qemu-storage-daemon"
RUN = Path("/run/volctl")
START, STOP = 30.0, 60.0  # seconds; what is stopped writes its last tables
BUSY = 5.0  # seconds that one may be too busy to answer
_DEEP = 100  # files that are looked through; each snapshot that was killed left one
_Inode = tuple[int, int]  # of which device, and its number there


@record
class Daemon:
    """Of the volume `name` of one database; there may be none."""

    database: str
    name: str

    @property
    def disk(self) -> Path:
        """A file for as long as there may be a daemon: the raw disk, where FUSE shows it."""
        return RUN / self.database / self.name

    @property
    def socket(self) -> Path:
        return self.disk.with_name(f"{self.name}.qmp")

    @property
    def _chardev(self) -> str:
        return f"socket,id=qmp,path={self.socket},server=on,wait=off"

    def ids(self) -> list[int]:
        """Process ids, by the command line, which anybody may write as he likes: so of processes of root's or ours."""
        return [int(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if self._runs_as(pid)]

    def _runs_as(self, pid: str) -> bool:
        process = Path("/proc", pid)
        try:
            if process.stat().st_uid not in (0, os.geteuid()):
                return False
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.path.basename(words[0]) == PROGRAM.encode() and self._chardev.encode() in words

    def works_on(self, path: Path) -> bool:
        """Is this the file that it writes into, or one that `go_on` would lead it to? Who may not look believes it."""
        opened = self._opened()
        return opened is None or not opened.keys().isdisjoint(_read_alike(path))

    def is_of(self, path: Path) -> bool:
        """Is it of the pool of this file, which may be gone or another by now, and not of a copy of that?

        Nobody knows it of one that has ended, which is in nobody's way; who may not look believes what is there.
        """
        if (opened := self._opened()) is None:
            return os.path.lexists(path) or not self.ids()
        directory = os.path.realpath(path.parent)
        here = any(os.path.dirname(name) == directory for name in opened.values())
        return here or not opened or not opened.keys().isdisjoint(_read_alike(path))

    def _opened(self) -> dict[_Inode, str] | None:
        """What it has open to be written, and under which name the kernel knows that; None if one may not look."""
        try:
            pid = listener(self.socket)
            return dict(file for each in ([pid] if pid else self.ids()) for file in _written_by(each))
        except PermissionError:
            return None

    def start(self, chain: Sequence[Path], export: dict[str, Any], *more: str) -> None:
        """Show the disk of the first file; the daemon opens exactly these, whatever their headers name."""
        with translated(f"make {self.disk}"):
            self._make_disk()
        words = ("--daemonize", "--chardev", self._chardev, "--monitor", "chardev=qmp")
        command.run_server(PROGRAM, *words, *more, timeout=START)
        try:
            with connected(self.socket) as monitor:
                _open(monitor, chain)
                monitor.execute("block-export-add", export | {"node-name": _name(chain[0])})
        except RefusedError as error:
            self.end()
            raise BackendError(f"{PROGRAM} does not show {self.name}, a chain of {len(chain)}: {error}") from error

    def _make_disk(self) -> None:
        """The file over which the disk is shown. Who detaches another volume may take the empty directory away."""
        while not self.disk.exists():
            self.disk.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                self.disk.touch(mode=0o600)

    def check(self) -> None:
        """`BackendError` if it says nothing: who then waits for its disk waits until it goes on."""
        if silent(self.socket, BUSY):
            raise BackendError(f"the storage daemon at {self.socket} does not answer", hint="was it stopped?")

    def end(self) -> None:
        """It writes what it knows, and ends."""
        for pid in self.ids():
            self._end(pid)

    def _end(self, pid: int) -> None:
        end = time.monotonic() + STOP
        with suppress(ProcessLookupError), _process(pid) as process:
            if self._runs_as(str(pid)):
                signal.pidfd_send_signal(process, signal.SIGTERM)
            while not select.select([process], [], [], 0.05)[0]:
                interrupt.check()
                if time.monotonic() > end:
                    raise BackendError(f"{PROGRAM} (pid {pid}) of {self.name} does not end within {STOP:g} s")

    @contextmanager
    def changing(self, what: str) -> Iterator[Monitor]:
        """Its monitor; what it refuses is an `InUseError`."""
        try:
            with connected(self.socket) as monitor:
                yield monitor
        except RefusedError as error:
            raise InUseError(
                f"cannot {what} {self.name} while it is attached: {error}", hint="detach it first"
            ) from error

    def size(self, path: Path) -> int:
        """Of the disk, in bytes."""
        with self.changing("look at") as monitor:
            node = self.go_on(monitor, path)
            return next(size for name, size in _nodes(monitor).items() if name == node)

    def go_on(self, monitor: Monitor, path: Path) -> str:
        """Write into the file at `path`, from one instant on, which lies over what is written to now; its node.

        It may do so already. A command that was killed may have left it in the file below, which reads the same.
        """
        overlay, present = _name(path), _written(monitor)
        if present in (overlay, None):
            return overlay
        if present not in {f"file-{inode}" for _, inode in _read_alike(path)}:
            raise other_file(self.name, path)
        if overlay not in _nodes(monitor):
            monitor.execute("blockdev-add", _node(path))
        monitor.execute("blockdev-snapshot", {"node": present, "overlay": overlay})
        return overlay


def other_file(name: str, path: Path) -> InUseError:
    """What there is to say when neither the file may be opened nor the daemon be ended."""
    said = f"the storage daemon of {name} has another file open than {path}"
    return InUseError(said, hint="detach it first, where it was attached")


def _written_by(pid: int) -> Iterator[tuple[_Inode, str]]:
    """The files that a process may write to; what only lies below them was opened for reading."""
    with suppress(FileNotFoundError, ProcessLookupError), os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # closed since
                file, writable = entry.stat(), entry.stat(follow_symlinks=False).st_mode & stat.S_IWUSR
                if writable and stat.S_ISREG(file.st_mode):
                    yield (file.st_dev, file.st_ino), os.readlink(entry.path)


def _read_alike(path: Path) -> Iterator[_Inode]:
    """The file at `path`, and while what is there is empty, what it lies over: a snapshot that was killed left that."""
    with suppress(OSError, BackendError):  # gone, or not ours to read
        for _ in range(_DEEP):
            with os_open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC) as fd:
                file = os.fstat(fd)
                yield file.st_dev, file.st_ino
                header = read(fd, path.name)
                if not (header.backing and is_layer(header.backing) and is_blank(fd, header)):
                    return
            path = path.with_name(header.backing)


def _name(path: Path) -> str:
    """Of the node of a file: one that is open has its inode for itself."""
    return f"file-{os.stat(path).st_ino}"


def _written(monitor: Monitor) -> str | None:
    """The node that is shown; None while it is being shown anew."""
    exports = monitor.execute("query-block-exports")
    return str(exports[0]["node-name"]) if exports else None


def _nodes(monitor: Monitor) -> dict[str, int]:
    """Names, and the sizes of their disks in bytes."""
    found = monitor.execute("query-named-block-nodes", {"flat": True})
    return {each["node-name"]: each["image"]["virtual-size"] for each in found}


def _open(monitor: Monitor, chain: Sequence[Path]) -> None:
    """From the lowest file up, each by itself: of a long chain one description would be too long."""
    below: str | None = None
    for path in reversed(chain):
        interrupt.check()
        monitor.execute("blockdev-add", _node(path, below, writes=path == chain[0]))
        below = _name(path)


def _node(path: Path, below: str | None = None, *, writes: bool = True) -> dict[str, Any]:
    """A qcow2 file over a node. The first of a chain is written to also by growing a read-only device."""
    return {
        "driver": "qcow2",
        "node-name": _name(path),
        "read-only": not writes,
        "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "read-only": not writes},
        "backing": below,
    }


@contextmanager
def _process(pid: int) -> Iterator[int]:
    """A descriptor of a process, which can be read from when it has ended (pidfd_open(2))."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)
