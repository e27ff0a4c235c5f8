"""A quota of the file system that is used up, under the volumes, the state or both: exit 6 or 11, and nothing lost.

A project quota of ext4, which holds for a root without CAP_SYS_RESOURCE as for anybody. `VOLCTL_QUOTA_CASES` says how
many of all cases are tried (16), evenly chosen; 0 is all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from tests.engine.crash import Rig
from tests.root.counted import counted
from tests.root.lvm_rig import run
from tests.torture.core import another, worlds
from tests.torture.full import PLACES, placed, starved
from tests.torture.verbs import VERBS

CASES = int(os.environ.get("VOLCTL_QUOTA_CASES", "16"))
MAKE = ("mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota")
PROJECT = "42"
HELD = ("setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource")
NAMES = ("create", "create-image", "create-volume", "extend", "snapshot", "revert", "image-add", "delete")
LEFT = (("b", 0), ("b", 4), ("b", 32), ("b", 256), ("b", 1024), ("i", 0), ("i", 1), ("i", 3))
"""KiB, or inodes."""
EVERY = list(product(NAMES, PLACES, LEFT))


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("quota")
    disk, place = base / "disk", base / "mount"
    place.mkdir()
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    run("modprobe", "quota_v2")
    run(*MAKE, disk)
    run("mount", "-o", "loop,prjquota", disk, place)
    run("chattr", "+P", "-p", PROJECT, place)  # and all that is made below
    yield place
    run("umount", place)


@pytest.fixture(scope="module")
def world() -> Iterator[Rig]:
    with worlds("loop", HELD) as made:
        yield made


def test_a_quota_that_is_used_up_leaves_all_as_it_was_or_done(world: Rig, mount: Path) -> None:
    chosen = [EVERY[number * len(EVERY) // CASES] for number in range(CASES)] if CASES else EVERY
    wrong, refused = {}, 0
    for name, place, (what, left) in chosen:
        with another(world) as rig, placed(rig, mount, place):
            found = starved(rig, VERBS[name], mount, limited(mount, what, left))
            refused += rig.flows(phase="undone") != []
        if found:
            wrong[f"{name}, {place}, {left} {what} left"] = found
    counted("shortages by a quota of the file system", len(chosen), len(EVERY))
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
    assert refused


@contextmanager
def limited(mount: Path, what: str, left: int) -> Iterator[None]:
    """So much more may be used, until the block ends."""
    lines = quota(mount, f"report -p -n -N -{what}").splitlines()
    used = next(int(line.split()[1]) for line in lines if line.startswith(f"#{PROJECT} "))
    quota(mount, f"limit -p {what}hard={used + left}{'k' * (what == 'b')} {PROJECT}")
    try:
        yield
    finally:
        quota(mount, f"limit -p {what}hard=0 {PROJECT}")


def quota(mount: Path, order: str) -> str:
    """xfs_quota speaks to any file system (`-f`)."""
    return run("xfs_quota", "-f", "-x", "-c", order, mount)
