"""What the parts of the torture share: what they may spend, what they found, and worlds of each backend."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests import oracle
from tests.engine.crash import MiB, Rig, Zygote, furnished
from tests.web import serving

UNCONFINED = "confine_qemu = false\n"  # a qemu-img of ours starts programs, which a cage forbids
PATIENCE = 300.0  # seconds for what must end by itself


@dataclass(frozen=True, slots=True)
class Budget:
    """How much a part may do: `cases` at most, none begun after `seconds`; `seed` decides which."""

    seed: int
    seconds: float = 60.0
    cases: int | None = None
    begun: float = field(default_factory=time.monotonic)
    stop_at_first: bool = False

    def random(self, what: str) -> random.Random:
        """A stream of its own for each purpose, so that more of one does not change another."""
        return random.Random(f"{self.seed} {what}")

    def share(self, whole: float, part: float) -> Budget:
        """`part` of `whole` of what is left, from now on."""
        left = max(0.0, self.begun + self.seconds - time.monotonic())
        return replace(self, seconds=left * part / whole, begun=time.monotonic())

    def limited(self, cases: int | None) -> Budget:
        return replace(self, cases=cases)

    def spent(self, tally: Tally) -> bool:
        if self.stop_at_first and tally.wrong:
            return True
        return time.monotonic() > self.begun + self.seconds or (self.cases is not None and tally.runs >= self.cases)


@dataclass(slots=True)
class Tally:
    """What was done: `runs`, of `total` where that is known, and every violation, a sentence each."""

    runs: int = 0
    total: int | None = None
    wrong: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    """Sentences for the table."""

    def add(self, where: str, found: Sequence[str]) -> None:
        """One run, and what was wrong with it."""
        self.runs += 1
        self.wrong += [f"{where}: {sentence}" for sentence in found]

    def note(self, what: str, times: int = 1) -> None:
        """Count what happened, for the table."""
        self.notes[what] = self.notes.get(what, 0) + times


@contextmanager
def worlds(kind: str, under: Sequence[str] = ()) -> Iterator[Rig]:
    """The furnished world on one kind of backend, with a warm process of its own, `under` another program.

    `caching` is `fake` where images are cached, `reflink` is `loop` on an xfs (where they are, too). There is a page
    that has the image.
    """
    with ExitStack() as stack:
        options = 'clone = "share"\n' if kind == "caching" else ""
        place = stack.enter_context(mounted("xfs")) if kind == "reflink" else None
        backend = {"caching": "fake", "reflink": "loop"}.get(kind, kind)
        zygote = Zygote(f"backends.{backend}", "urllib3", under=under)
        stack.callback(zygote.close)
        world = stack.enter_context(furnished(zygote, backend, options, place))
        image, web = world.contents["image"].source, stack.enter_context(serving())
        assert image is not None
        yield replace(world, page=web.put("/disk.raw", image.read_bytes()))


@contextmanager
def another(world: Rig) -> Iterator[Rig]:
    """A copy of it; devices that a command attached, and who serves them, are gone at the end."""
    with world.copy() as rig:
        try:
            yield rig
        finally:
            let_go(rig)


def let_go(rig: Rig) -> None:
    """Detach what is attached, as far as there is a state that knows it."""
    if oracle.is_usable(rig.state):
        tables = oracle.load(rig.state)
        for row in tables["volumes"]:
            if row["status"] == "in-use":
                rig.run("detach", row["id"])
        detach(Path(oracle.exports(tables)))
    detach(rig.root)


def detach(root: Path) -> None:
    """What is left of attachments that nobody knows of any more."""
    for device in devices(root):
        subprocess.run(["losetup", "-d", f"/dev/{device}"], check=False, stderr=subprocess.DEVNULL)
    for pid in users(root):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def devices(root: Path) -> list[str]:
    """Loop devices on files under `root`."""
    found = Path("/sys/block").glob("loop*/loop/backing_file")
    return [file.parent.parent.name for file in found if read(file).startswith(f"{root}/")]


def read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""  # gone meanwhile


def users(root: Path) -> list[int]:
    """Processes, not ours, that have a file under `root` open."""
    return [
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid != os.getpid() and _uses(pid, root)
    ]


def _uses(pid: int, root: Path) -> bool:
    directory, found = f"/proc/{pid}/fd", False
    with suppress(OSError):  # it is gone
        for name in os.listdir(directory):
            with suppress(OSError):  # that one was closed meanwhile; the others count
                found = found or os.readlink(f"{directory}/{name}").startswith(f"{root}/")
    return found


def quiet(root: Path) -> bool:
    """Wait until nobody works there any more; False if somebody goes on for too long."""
    end = time.monotonic() + PATIENCE
    while any(not read(Path(f"/proc/{pid}/cmdline")).startswith(oracle.SERVERS) for pid in users(root)):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


MAKE = {
    "ext4": ("mkfs.ext4", "-q", "-m", "0", "-N", "512", "-b", "4096"),
    "ext4 of 1 KiB blocks": ("mkfs.ext4", "-q", "-m", "0", "-N", "512", "-b", "1024"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
}
SIZE = {"ext4": 64 * MiB, "ext4 of 1 KiB blocks": 64 * MiB, "xfs": 320 * MiB}  # no xfs is smaller


@contextmanager
def mounted(kind: str) -> Iterator[Path]:
    """An empty file system of that kind, in memory."""
    root = Path(tempfile.mkdtemp(prefix="volctl-torture-", dir="/dev/shm"))
    disk, mount = root / "disk", root / "mount"
    mount.mkdir()
    try:
        disk.touch()
        os.truncate(disk, SIZE[kind])
        subprocess.run([*MAKE[kind], str(disk)], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
        try:
            yield mount
        finally:
            subprocess.run(["umount", str(mount)], check=True)
    finally:
        shutil.rmtree(root)
