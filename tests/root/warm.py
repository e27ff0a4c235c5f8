"""volctl in the guest as the child of a warm process (its imports alone take seconds there), and the stage for it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engine.crash import Ended, Zygote
from tests.root.lvm_rig import run, words
from volctl.model import MiB

BOUND = 45.0  # seconds of a command that fails: an emulated processor under load, and yet less than a pool's 60


def zygote() -> Zygote:
    """A warm process with all that commands on LVM import: that takes seconds here."""
    return Zygote("volctl.*", "backends.lvm", "sh", "pyudev", "mmap")


@dataclass(frozen=True, slots=True)
class Warm:
    """`warm("create", "v", "--size", "1")` in a state directory of its own, on the backend `fast`."""

    zygote: Zygote
    home: Path

    @property
    def database(self) -> Path:
        return self.home / "state/volctl.db"

    def configure(self, group: str, *, cached: int = 0, **options: object) -> None:
        """One backend on LVM, prepared; images are not cached unless asked for, so that what takes room is known."""
        values = {"name": "fast", "kind": "lvm", "volume_group": group, **options}
        lines = [f"{key} = {value!r}" for key, value in values.items()]
        cache = ["[image_cache]", f"max_count = {cached}"]
        (self.home / "config.toml").write_text("\n".join([*cache, "[[backend]]", *lines, ""]))
        self("backend", "init", "fast", "-y")

    def start(self, *argv: str | Path, **order: Any) -> int:
        env = {"VOLCTL_STATE_DIR": str(self.home / "state"), "VOLCTL_CONFIG": str(self.home / "config.toml")}
        return self.zygote.start({"argv": list(map(str, argv)), "env": env, **order})

    def join(self, pid: int) -> Ended:
        return self.zygote.join(pid)

    def __call__(self, *argv: str | Path, status: int | None = 0, **order: Any) -> Ended:
        """Run one command; fails the test unless it ends with `status` (None: whatever it is)."""
        done = self.join(self.start(*argv, **order))
        assert status is None or done.status == status, f"{argv}: exit {done.status}\n{done.err}"
        return done

    def show(self, name: str) -> Any:
        return self("show", name, "--json").json()

    def lv(self, name: str) -> str:
        return f"volume-{self.show(name)['id']}"

    def unfinished(self) -> list[str]:
        """The ids of flows that have not ended."""
        return [flow["id"] for flow in self("flow", "list", "--json").json() if not flow["ended_at"]]


def fails(warm: Warm, status: int, *argv: str | Path) -> tuple[str, str]:
    """Run it; what it says and the fault that the row of `v` keeps."""
    began = time.monotonic()
    done = warm(*argv, status=status)
    assert time.monotonic() - began < BOUND
    shown = warm.show("v")
    assert shown["status"] == "error" and warm.unfinished() == []
    return done.err, f"{shown['fault']['code']}: {shown['fault']['message']}"


def lvm_calls(ended: Ended) -> list[str]:
    """The verbs of LVM that a command ran with `programs=True`, in order."""
    return [point.split()[2] for point in ended.points if point.startswith("start lvm ")]


def image(path: Path, mebibytes: int, fill: bytes = b"image") -> Path:
    """A raw image of the size; each MiB is another."""
    with path.open("wb") as file:
        for number in range(mebibytes):
            file.write((fill + b" %07d " % number).ljust(32, b"-") * (MiB // 32))
    return path


def digest(path: Path, length: int = -1) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()


def read_directly(path: Path) -> str:
    """The digest of what the disks hold, not the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return digest(path)


def foreign(group: str, *where: str | Path) -> Path:
    """An LV that is not ours, active, of 4 MiB and with something on it."""
    run("lvcreate", "-y", "-Wn", "-Zn", "-L", "4m", "-n", "home", group, *where)
    path = Path("/dev", group, "home")
    path.write_bytes(b"not volctl's" * 1000)
    run("sync", path)
    return path


def until(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(0.005)


def new_volume(group: str, known: set[str], kind: str = "volume") -> Path:
    """The node of a volume (or `image`) of ours that appears now."""
    found: list[Path] = []

    def appeared() -> bool:
        found[:] = [path for path in Path("/dev", group).glob(f"{kind}-*") if path.name not in known]
        return bool(found)

    until(appeared)
    return found[0]


@contextmanager
def node(name: str, table: str) -> Iterator[Path]:
    """A device-mapper device of one's own."""
    run("dmsetup", "create", name, "--table", table)
    try:
        yield Path("/dev/mapper", name)
    finally:
        run("udevadm", "settle")
        run("dmsetup", "remove", "--retry", name)


def reload(name: str, table: str) -> None:
    """Another table for a device, whatever is in flight on the old one."""
    run("dmsetup", "suspend", "--noflush", "--nolockfs", name)
    run("dmsetup", "load", name, "--table", table)
    run("dmsetup", "resume", name)


def sectors(disk: Path) -> int:
    return int(words("blockdev", "--getsz", str(disk))[0])
