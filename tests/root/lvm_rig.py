"""Volume groups on the guest's blank disks, and what is in them as LVM's own tools tell it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.lvm import Lvm
from volctl.backend import Backend, Setup
from volctl.model import MiB, Object


def run(*argv: str | Path, check: bool = True) -> str:
    done = subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


def words(*argv: str) -> list[str]:
    return run(*argv).split()


@contextmanager
def volume_group(disks: list[Path], name: str) -> Iterator[Path]:
    """A group of extents of 1 MiB; gone afterwards, under whatever name it has by then."""
    run("vgcreate", "-q", "-s", "1m", name, *disks)
    try:
        yield Path("/dev", name)
    finally:
        run("udevadm", "settle")
        for left in words("vgs", "--noheadings", "-o", "vg_name"):
            run("vgimport", left, check=False)
            run("vgremove", "-ff", "-y", left)
        assert words("dmsetup", "ls") in ([], ["No", "devices", "found"])


def make(group: str, database: str, **options: object) -> Lvm:
    return Lvm(Setup("fast", {"volume_group": group, **options}, database))


@contextmanager
def active(pool: Backend, target: Object) -> Iterator[Path]:
    """As a person would look at an LV by hand."""
    path = pool.path(target)
    run("lvchange", "-y", "-ay", "-K", f"{path.parent.name}/{path.name}")
    try:
        yield path
    finally:
        run("udevadm", "settle")
        run("lvchange", "-y", "-an", f"{path.parent.name}/{path.name}")


def lvs(group: str, select: str = "") -> list[str]:
    return words("lvs", "--noheadings", "-o", "lv_name", *(["-S", select] if select else []), group)


def places(where: str) -> list[tuple[str, int, int]]:
    """Where a group's LVs, or one LV, lie: disk, first byte, length. Extents are of 1 MiB."""
    found = []
    for area in words("lvs", "-a", "--noheadings", "-o", "seg_pe_ranges", where):
        disk, _, extents = area.partition(":")
        first, last = map(int, extents.split("-"))
        begin = int(words("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", disk)[0])
        found.append((disk, begin + first * MiB, (last + 1 - first) * MiB))
    return found
