"""No room: small file systems under the volumes, the state, or all, with so much left, or filled at any moment.

Exit 6 or 11, in bounded time; what was there before stays as it was, and with room again all is settled.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.engine.crash import Ended, Rig
from tests.torture.core import MAKE, Budget, Tally, another, detach, let_go, mounted, quiet, worlds
from tests.torture.verbs import VERBS, Verb, fitting, outcome

PLACES = {"volumes": ("a",), "state": ("state",), "everything": ("state", "a", "b")}
BLOCKS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
INODES = (0, 1, 2, 3, 4, 5)
TIMES = 6  # moments at which the rest is taken at once
CODES = {0, 6, 11}
LIMIT = 300.0  # seconds, of a command that is to give up by itself before its --timeout


@dataclass(frozen=True, slots=True)
class Shortage:
    """On `kind`, under `place`: so many blocks or inodes are left, or none from a random moment on."""

    kind: str
    place: str
    what: str
    left: int

    def __str__(self) -> str:
        left = f"{self.left} {self.what} left" if self.what != "moment" else f"filled at moment {self.left}"
        return f"{self.place} on {self.kind}, {left}"


def shortages() -> Iterator[Shortage]:
    for kind in MAKE:
        for place in PLACES:
            yield from (Shortage(kind, place, "blocks", left) for left in BLOCKS)
            yield from (Shortage(kind, place, "moment", number) for number in range(TIMES))
            if kind != "xfs":  # xfs makes its inodes as it needs them
                yield from (Shortage(kind, place, "inodes", left) for left in INODES)


def run(kind: str, budget: Budget) -> Tally:
    """In an order that the seed decides; with time enough, all of them."""
    with ExitStack() as stack:
        world = stack.enter_context(worlds(kind))
        cases = [(name, shortage) for name in fitting(world) for shortage in shortages()]
        tally = Tally(total=len(cases))
        budget.random("full").shuffle(cases)
        mounts = {name: stack.enter_context(mounted(name)) for name in MAKE}
        for name, shortage in cases:
            if budget.spent(tally):
                break
            found = suffered(world, name, shortage, mounts[shortage.kind], budget.random(f"{name} {shortage}"))
            tally.add(f"{name}, {shortage}", found)
    return tally


def suffered(world: Rig, name: str, shortage: Shortage, mount: Path, rng: random.Random) -> list[str]:
    """One verb in a world of its own, part of it on the small file system at `mount`."""
    with another(world) as rig, placed(rig, mount, shortage.place):
        return starved(rig, VERBS[name], mount, short(mount, shortage, rng))


def starved(rig: Rig, verb: Verb, mount: Path, shortage: AbstractContextManager[None]) -> list[str]:
    """One verb while there is a shortage at `mount`, and what is wrong after it."""
    verb.prepare(rig)
    words, begun = [*rig.words(verb.argv), "--timeout", f"{LIMIT:g}s"], time.monotonic()
    with shortage:
        ended = rig.run(*words)
        took = time.monotonic() - begun
        looked = rig.run("list", "--json")
        found = [] if quiet(rig.root) and quiet(mount) else ["a process lives on"]
    found += [*_told(ended, verb.codes), *_told(looked)]
    if took > LIMIT:
        found.append(f"it took {took:.0f} s")
    return found + outcome(rig, verb, ended)


def _told(ended: Ended, codes: Collection[int] = ()) -> list[str]:
    return [] if ended.status in {*CODES, *codes} else [f"exit {ended.status}: {ended.err.strip()}"]


@contextmanager
def placed(rig: Rig, mount: Path, place: str) -> Iterator[None]:
    """Some directories of the world lie on the small file system."""
    for name in PLACES[place]:
        shutil.copytree(rig.root / name, mount / name, symlinks=True)
        shutil.rmtree(rig.root / name)
        (rig.root / name).symlink_to(mount / name)
    rig.mark_foreign()
    try:
        yield
    finally:
        let_go(rig)
        detach(mount)
        for name in PLACES[place]:
            shutil.rmtree(mount / name)


@contextmanager
def short(mount: Path, shortage: Shortage, rng: random.Random) -> Iterator[None]:
    """So much is left, until the block ends."""
    filler = mount / "filler"
    filler.mkdir()
    later = threading.Timer(rng.uniform(0, 0.25), _take_blocks, (filler, 0))
    try:
        if shortage.what == "inodes":
            _take_inodes(filler, shortage.left)
        elif shortage.what == "blocks":
            _take_blocks(filler, shortage.left)
        else:
            later.start()
        yield
        later.cancel()
        if later.ident:
            later.join()
    finally:
        shutil.rmtree(filler)


def _take_blocks(filler: Path, left: int) -> None:
    with (filler / "blocks").open("wb") as file:
        for _ in range(3):  # what the file system takes for itself comes late
            room = os.fstatvfs(file.fileno())
            size = (room.f_bavail - left) * room.f_frsize
            if size <= 0:
                break
            try:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
            except OSError:
                _take_slowly(file.fileno(), left)


def _take_slowly(fd: int, left: int) -> None:
    """The last blocks, one by one."""
    room = os.fstatvfs(fd)
    for _ in range(room.f_bavail - left):
        try:
            os.posix_fallocate(fd, os.fstat(fd).st_size, room.f_frsize)
        except OSError:
            return


def _take_inodes(filler: Path, left: int) -> None:
    for number in range(max(0, os.statvfs(filler).f_favail - left)):
        (filler / str(number)).touch()
