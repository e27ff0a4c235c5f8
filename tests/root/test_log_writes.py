"""A file system that has the state directory and the volumes, as its disk was at each flush while commands ran.

Device-mapper logs every write below it, and these are done again to a file, up to a flush: mounted, after one command
all holds, and what commands had said to be done is. `VOLCTL_REPLAYS` says how many flushes of each file system are
looked at (10), evenly spread from one on that the seed decides; 0 is all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import oracle
from tests.engine.crash import MiB, Rig, Zygote, noise
from tests.root import promises
from tests.root.counted import counted
from tests.root.log_writes import Entry, entries, logged, mark, replay
from tests.root.lvm_crash import SETTLE
from tests.root.lvm_rig import run
from tests.sampling import spread

REPLAYS = int(os.environ.get("VOLCTL_REPLAYS", "10"))
MAKE = {"ext4": (96 * MiB, ["mkfs.ext4", "-q", "-E", "nodiscard"]), "xfs": (320 * MiB, ["mkfs.xfs", "-q", "-K"])}
BACKEND = "files"
LINES = promises.lines(promises.ROUND + "create i-B --size 8M --from-image QCOW2", BACKEND)
Flush = tuple[int, str]
"""The number of its entry in the log, and what had been said by then."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote("backends.loop", "volctl.images.convert")
    yield made
    made.close()


@pytest.mark.parametrize("kind", MAKE)
def test_at_each_flush_one_command_puts_all_right(
    kind: str, blank_disks: list[Path], tmp_path: Path, zygote: Zygote
) -> None:
    disk, log = blank_disks[:2]
    rig = world(zygote, tmp_path)
    size, words = MAKE[kind]
    with logged(disk, log, size) as device:
        run(*words, device)
        with mounted(device, rig.root):
            work(rig)
    image, fd = tmp_path / "image", os.open(log, os.O_RDONLY)
    with image.open("wb") as file:
        file.truncate(size)
    every = flushes(entries(fd))
    chosen = spread(every, kind, REPLAYS)
    wrong = {number: found for number, said in replayed(fd, image, chosen) if (found := left(rig, image, said))}
    os.close(fd)
    counted(f"flushes of {kind} replayed", len(chosen), len(every))
    assert len(every) > 10 * len(LINES)
    assert not wrong, "\n".join(f"after entry {number}: {found}" for number, found in wrong.items())


def world(zygote: Zygote, directory: Path) -> Rig:
    """One pool of loop files, to be mounted at its root."""
    root = directory / "mount"
    root.mkdir()
    data, picture = noise(directory / "data", 4 * MiB, 1), noise(directory / "disk.raw", MiB, 2)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", directory / "disk.raw", directory / "disk.qcow2")
    contents = {f"{name}-{BACKEND}": data for name in ("src", "s", "w")} | {f"i-{BACKEND}": picture, "image": picture}
    return Rig(zygote, root, contents, names=(BACKEND,), kind="loop")


@contextmanager
def mounted(device: Path, place: Path, *options: str) -> Iterator[None]:
    run("mount", *options, device, place)
    try:
        yield
    finally:
        run("umount", place)


def work(rig: Rig) -> None:
    (rig.root / BACKEND).mkdir()
    rig.configure()
    rig.run("backend", "init", BACKEND, "-y", status=0)
    rig.run("create", f"src-{BACKEND}", "--size", "4M", status=0)
    rig.overwrite(f"src-{BACKEND}", rig.contents[f"src-{BACKEND}"])
    os.sync()
    mark("ready")
    for line in LINES:
        mark(f"begin {line}")
        rig.run(*rig.words(line), status=0)
        mark(f"done {line}")


def flushes(log: Iterator[Entry]) -> list[Flush]:
    """All since it was ready."""
    found, said = [], ""
    for number, entry in enumerate(log):
        said += f"{entry.mark}\n" if entry.mark else ""
        if entry.is_durable and said:
            found.append((number, said))
    return found


def replayed(log: int, image: Path, chosen: Sequence[Flush]) -> Iterator[Flush]:
    """Each of them when `image` is as the disk was then."""
    told = dict(chosen)
    with image.open("r+b") as file:
        for number, entry in enumerate(entries(log)):
            replay(log, entry, file.fileno())
            if number in told:
                yield number, told[number]


def left(rig: Rig, image: Path, said: str) -> list[str]:
    """One command on a copy, then SPEC section 11, and the promises."""
    copy = image.with_name("copy")
    run("cp", "--sparse=always", image, copy)
    with mounted(copy, rig.root, "-o", "loop"):
        told = rig.run(*SETTLE)
        if told.status:
            return [f"the next command: exit {told.status}: {told.err}"]
        cached = {row["location"]: rig.contents["image"] for row in rig.cached()}  # xfs shares blocks
        return rig.judge(told, **cached) + promises.broken(oracle.load(rig.state), said)
