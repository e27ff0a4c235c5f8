"""A world to crash in, on real LVM: a thin and a thick group, things in them that are not ours, and its oracle."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import oracle
from tests.engine.crash import Ended, Zygote, noise
from tests.oracle import Content, Row
from tests.root import lvm_oracle
from tests.root.lvm_rig import run, volume_group
from tests.root.warm import zygote

MiB = 1024**2
SIZE = 4 * MiB
GROUPS = {"thin": "kill-thin", "thick": "kill-thick"}
SETTLE = ("quota", "set", "--volumes", "1000", "--json")
"""Does nothing of its own but settles all, for which a command that only reads might lack the time; tells the use."""
PATIENCE = 120.0  # seconds a killed command's children may go on


@dataclass(slots=True)
class Rig:
    """Of each backend B: `src-B` (4 MiB) with snapshots `snap-B` and `extra-B`, and a blank `bystander-B`."""

    zygote: Zygote
    root: Path
    contents: dict[str, Content] = field(default_factory=dict)
    foreign: lvm_oracle.Marks = field(default_factory=dict)

    @property
    def state(self) -> Path:
        return self.root / "state"

    def start(self, *argv: str, **order: Any) -> int:
        env = {"VOLCTL_STATE_DIR": str(self.state), "VOLCTL_CONFIG": str(self.root / "config.toml")}
        return self.zygote.start({"argv": argv, "env": env, **order})

    def run(self, *argv: str, status: int | None = None, **order: Any) -> Ended:
        """One command to its end, and its children's; `order` as `tests.engine.zygote` takes it."""
        done = self.zygote.join(self.start(*argv, **order))
        alone(self.state)
        assert status is None or done.status == status, f"{' '.join(argv)}: exit {done.status}\n{done.err}"
        return done

    def row(self, name: str) -> Row | None:
        tables = oracle.load(self.state)
        return next((row for row in (*tables["volumes"], *tables["snapshots"]) if row["name"] == name), None)

    def there(self, name: str) -> Row:
        row = self.row(name)
        assert row is not None, f"there is no {name}"
        return row

    def device(self, name: str) -> Path:
        row = self.there(name)
        return Path("/dev", GROUPS[row["backend"]], f"volume-{row['id']}")

    def write(self, name: str, what: str) -> None:
        """What a guest would do."""
        source, device = self.contents[what].source, self.device(name)
        assert source
        with lvm_oracle.awake([str(device.relative_to("/dev"))]), device.open("r+b") as file:
            file.write(source.read_bytes())
        self.contents[name] = self.contents[what]

    def settled(self, *reads: str, **contents: Content) -> list[str]:
        """One more command, then the oracle; contents are read on the backends of `reads`."""
        settling = self.run(*SETTLE)
        if settling.status:
            return [f"the next command: exit {settling.status}: {settling.err}"]
        told = settling.json()
        groups = [GROUPS[backend] for backend in reads]
        return lvm_oracle.check(
            lvm_oracle.World(self.state, GROUPS, self.contents | contents, self.foreign, groups, told)
        )

    def put_back(self, backend: str, attached: bool, cache: str | None = None) -> None:
        """As it was before the last command, as far as that changed anything; the image cache `empty` or `full`."""
        for name, verb in (("s", ["snapshot", "delete"]), ("v", ["delete"])):
            if self.row(name):
                self.run(*verb, name, "-y", status=0)
        if not self.row(f"bystander-{backend}"):
            self.run("create", f"bystander-{backend}", "--size", "4M", "--backend", backend, status=0)
        if not self.row(f"extra-{backend}"):  # of an attached volume there is none on thick
            self.attach(backend, False)
            self.run("snapshot", "create", f"src-{backend}", f"extra-{backend}", status=0)
            self.contents[f"extra-{backend}"] = self.contents[f"src-{backend}"]
        self.attach(backend, attached)
        if cache:
            self.run("image", "cache", "prune", "--all", status=0)
        if cache == "full":
            image = str(self.root / "disk.qcow2")
            self.run("create", "v", "--from-image", image, "--backend", backend, status=0)
            self.run("delete", "v", "-y", status=0)

    def attach(self, backend: str, wanted: bool) -> None:
        """Or detach, unless it is so."""
        if (self.there(f"src-{backend}")["status"] == "in-use") != wanted:
            self.run("attach" if wanted else "detach", f"src-{backend}", status=0)


def alone(state: Path) -> None:
    """Wait until nobody holds a lock: what a killed command began goes on, and holds them."""
    end = time.monotonic() + PATIENCE
    for path in (*(state / "locks").glob("*"), *Path("/run/volctl").glob("*.lock")):
        while not _is_free(path):
            assert time.monotonic() < end, f"{path} is still held"
            time.sleep(0.02)


def _is_free(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def furnished(root: Path, disks: Sequence[Path]) -> Iterator[Rig]:
    warm = zygote()
    with ExitStack() as stack:
        stack.callback(warm.close)
        for name, disk in zip(GROUPS.values(), disks, strict=False):
            stack.enter_context(volume_group([disk], name))
        rig = Rig(warm, root)
        _configure(rig)
        _fill(rig)
        yield rig


def _configure(rig: Rig) -> None:
    tables = [
        f'[[backend]]\nname = "{name}"\nkind = "lvm"\nvolume_group = "{group}"\nprovisioning = "{name}"\n'
        + ('pool_size = "256M"\n' if name == "thin" else "")
        for name, group in GROUPS.items()
    ]
    (rig.root / "config.toml").write_text("\n".join(tables))


def _fill(rig: Rig) -> None:
    """Also a stranger's LV in each group, which stays active."""
    for name, size in (("then", 3 * MiB), ("now", SIZE), ("image", 2 * MiB)):
        rig.contents[name] = noise(rig.root / name, size, size)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", rig.root / "image", rig.root / "disk.qcow2")
    rig.contents[str(rig.root / "disk.qcow2")] = rig.contents["image"]
    for backend, group in GROUPS.items():
        run("lvcreate", "-y", "-Wn", "-L", "4m", "-n", "home", "--addtag", "volctl-like", group)
        Path("/dev", group, "home").write_bytes((rig.root / "now").read_bytes()[::-1])
        rig.run("backend", "init", backend, "-y", status=0)
        rig.run("create", f"src-{backend}", "--size", "4M", "--backend", backend, status=0)
        rig.write(f"src-{backend}", "then")
        rig.run("snapshot", "create", f"src-{backend}", f"snap-{backend}", status=0)
        rig.contents[f"snap-{backend}"] = rig.contents["then"]
        rig.write(f"src-{backend}", "now")
        rig.put_back(backend, attached=False)
    rig.foreign = lvm_oracle.marks([f"{group}/home" for group in GROUPS.values()])
    assert rig.settled(*GROUPS) == []
