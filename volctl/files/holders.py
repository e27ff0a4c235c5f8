"""Who has a file or a block device open: loop devices, mounts, processes, and who holds qemu's image locks.

Sources: proc(5), fcntl(2) (F_OFD_GETLK),
qemu's docs/interop/… on `file.locking`: qemu locks single bytes at 100 and 200 of an image.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from volctl import held, interrupt, kernel
from volctl.files.backing import backed_by

_FLOCK = "hhqqi"  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_GLANCE = (0.01, 0.05, 0.1, 0.2)
"""Seconds, one after another, in which whoever only looks at a header has closed the file again."""


def holders(path: Path, fd: int) -> list[str]:
    """For a person to read: `/dev/loop3, mounted on /mnt`, `qemu-system-x86 (pid 812)`.

    `fd` is open on the file at `path` (for reading is enough). This process and its children do not
    count, nor who shares a lock with us, nor who has closed it in a moment: another command of ours that looks at all
    files. Without rights to see the processes of others, a lock still tells of them.
    """
    strangers, ours = _processes(path, os.fstat(fd))
    if strangers and (ours or not _locked(fd)):
        strangers = _staying(strangers, path, os.fstat(fd))
    found = [*_loops(os.fstat(fd), path.name), *map(_named, strangers)]
    if not found and not ours and _stays_locked(fd):
        found.append("a process that locks it (such as qemu)")
    return found


def device_holders(node: Path) -> list[str]:
    """Who holds a block device, for a person to read: `mounted on /mnt`, `held by dm-3`, `dd (pid 812)`.

    Its partitions count, and mounts of other namespaces (containers) as far as one may see them.
    """
    device = os.stat(node)
    block = Path("/sys/dev/block", f"{os.major(device.st_rdev)}:{os.minor(device.st_rdev)}").resolve()
    return [
        *_uses(block),
        *(f"held by {above}" for above in _loops(device, node.name)),
        *map(_named, _processes(node, device)[0]),
    ]


def _loops(file: os.stat_result, name: str) -> Iterator[str]:
    for loop in backed_by(file, name):
        yield ", ".join([f"/dev/{loop}", *_uses(Path("/sys/block", loop))])


def _uses(block: Path) -> Iterator[str]:
    """How a block device (its directory in sysfs) and its partitions are used."""
    parts = [block, *(path.parent for path in block.glob("*/partition"))]
    numbers = {kernel.text(part / "dev") for part in parts}
    nodes = {f"/dev/{part.name}" for part in parts}
    for mount in sorted(_mounts(numbers, nodes)):
        yield f"mounted on {mount}"
    swaps = {line.partition(" ")[0] for line in kernel.lines(Path("/proc/swaps"))}
    if swaps & nodes:
        yield "in use as swap"
    for part in parts:
        yield from (f"held by {_device(holder.resolve())}" for holder in (part / "holders").iterdir())


def _device(block: Path) -> str:
    """`dm-3 (vg0-root)` for a device-mapper device, else `md0`."""
    name = _text(block / "dm/name").strip()
    return f"{block.name} ({name})" if name else block.name


def _mounts(numbers: set[str], nodes: set[str]) -> set[str]:
    """Where devices are mounted, in every mount namespace; btrfs shows another number, but names its device."""
    seen, found = set(), set()
    for pid in ("self", *filter(str.isdigit, os.listdir("/proc"))):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace not in seen:
            seen.add(namespace)
            with suppress(OSError):  # it is gone, or not ours to read
                found |= {mount.point for mount in kernel.mounts(pid) if _is_one(mount, numbers, nodes)}
    return found


def _is_one(mount: kernel.Mount, numbers: set[str], nodes: set[str]) -> bool:
    return mount.device in numbers or mount.source in nodes


def _processes(path: Path, file: os.stat_result) -> tuple[list[str], bool]:
    """The ids of the strangers that have the file open, and whether one of us has."""
    strangers, ours = [], False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if _opens(pid, path.name, file):
            if _is_ours(int(pid)) or _shares_lock(pid):
                ours = ours or int(pid) != os.getpid()
            else:
                strangers.append(pid)
    return strangers, ours


def _staying(pids: list[str], path: Path, file: os.stat_result) -> list[str]:
    """Those that do not close the file in a moment. Most that keep it lock it, as qemu does, and are not waited for."""
    for pause in _GLANCE:
        if pids:
            interrupt.pause(pause)
            pids = [pid for pid in pids if _opens(pid, path.name, file)]
    return pids


def _stays_locked(fd: int) -> bool:
    """A program that ends lets go of our locks first, then of its files, and has no descriptors to see meanwhile."""
    for pause in _GLANCE:
        if not _locked(fd):
            return False
        interrupt.pause(pause)
    return _locked(fd)


def _named(pid: str) -> str:
    return f"{_text(Path('/proc', pid, 'comm')).strip() or 'a process'} (pid {pid})"


def _opens(pid: str, name: str, file: os.stat_result) -> bool:
    """The name is looked at first: to stat what others have open may hang (a dead NFS server)."""
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(name in os.readlink(e.path) and os.path.samestat(os.stat(e.path), file) for e in entries)
    except OSError:
        return False


def _is_ours(pid: int) -> bool:
    while pid > 1 and pid != os.getpid():
        fields = _text(Path("/proc", str(pid), "stat")).rpartition(")")[2].split()
        pid = int(fields[1]) if fields else 0
    return pid == os.getpid()


def _shares_lock(pid: str) -> bool:
    """Whoever has one of our lock files open reads under the same shared lock: no stranger.

    By the names alone: one that was replaced is shown as deleted.
    """
    try:
        locks = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in held.locks}
        with os.scandir(f"/proc/{pid}/fd") as entries:
            return any(os.readlink(entry.path) in locks for entry in entries)
    except OSError:
        return False


def _text(path: Path) -> str:
    """Empty if it is gone, or not ours to read."""
    try:
        return kernel.text(path)
    except OSError:
        return ""


def _locked(fd: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK
