#!/usr/bin/env python3
"""The part of `scripts/bench` that needs LVM: runs as root in the guest of `scripts/vm`, with two blank disks.

    scripts/vm --disk 6G --disk 6G --in image.qcow2 -- python3 scripts/bench_lvm.py --runs 5

Beside volctl stand the tools it drives, on the same group: the bare `lvcreate`, `qemu-img convert` to an LV.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_measure import GiB, MiB, Pair, Row, heading, milliseconds, paired, run, seconds_of, show, times
from bench_state import DURABLE, State

HOME = Path("/var/lib/volctl/bench")
DISKS = {"thin": "/dev/vdb", "thick": "/dev/vdc"}
TAIL = 64 * MiB  # of a volume, behind its image
EXECUTED = re.compile(r'execve\("([^"]+)", \[(.*?)\]')
NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Pool:
    """One backend on a group of its own."""

    kind: str
    state: State  # in which no image is cached
    caching: State  # the same, with the image cache

    @property
    def group(self) -> str:
        return f"bench-{self.kind}"

    def tool(self, *words: str) -> float:
        return run(words, self.state.env).seconds

    def lvcreate(self, size: int, name: str, *more: str) -> float:
        """A bare LV as somebody at a shell would make it."""
        where = ["-V", f"{size}b", "--thinpool", f"{self.group}/volctl"] if self.kind == "thin" else ["-L", f"{size}b"]
        return self.tool(
            "lvcreate", "-qq", "-y", *where, "-n", name, *more, *([] if where[0] == "-V" else [self.group])
        )

    def said(self, *words: str) -> list[str]:
        """The words that a tool prints."""
        return subprocess.run(words, env=self.state.env, check=True, capture_output=True, text=True).stdout.split()

    def used(self) -> int:
        """Bytes of the thin pool's data that are taken (dm-thin's status: used/total blocks)."""
        name = f"{self.group.replace('-', '--')}-volctl-tpool"
        block = int(self.said("dmsetup", "table", name)[5]) * 512
        return int(self.said("dmsetup", "status", name)[5].split("/")[0]) * block

    def source(self, name: str, size: int) -> None:
        """A volume that is full of data."""
        self.state.volctl("create", name, "--size", f"{size // MiB}M", "--attach")
        piece = random.randbytes(4 * MiB)
        with open(f"/dev/{self.group}/volume-{self.state.id_of(name)}", "r+b", buffering=0) as device:
            device.writelines(piece for _ in range(size // len(piece)))
            os.fsync(device.fileno())
        self.state.volctl("detach", name)


def prepared(kind: str, runs: int) -> Pool:
    home = HOME / kind
    home.mkdir(parents=True)
    program = (sys.executable, "-m", "volctl")
    plain, caching = (State(home / "state", runs, str(home / name), program) for name in ("plain.toml", "caching.toml"))
    pool = Pool(kind, plain, caching)
    options = f'volume_group = "{pool.group}"\nprovisioning = "{kind}"'
    backend = f'[[backend]]\nname = "{kind}"\nkind = "lvm"\n{options}\n'
    Path(plain.config).write_text(f"[image_cache]\nmax_count = 0\n{backend}")
    Path(caching.config).write_text(backend)
    pool.tool("vgcreate", "-qq", pool.group, DISKS[kind])
    pool.state.volctl("backend", "init", kind, "--yes")
    return pool


# -- blank volumes, clones and snapshots


def blank(pool: Pool) -> Row:
    def bare() -> float:
        return pool.state.floor() + pool.lvcreate(8 * MiB, f"bare{next(NUMBERS)}")

    def ours() -> float:
        return pool.state.volctl("create", "--size", "8M")

    pair = paired(ours, bare, pool.state.runs)
    return times(f"create blank, {pool.kind}", pair, "import floor + bare lvcreate", 1.3, pool.state.runs)


def shared(pool: Pool) -> Iterator[Row]:
    """Clone and snapshot of two sizes."""
    for name, size in {"small": 16 * MiB, "big": GiB}.items():
        pool.source(name, size)
    for what, words in {"clone": ("create", "--from-volume"), "snapshot": ("snapshot", "create")}.items():

        def of(name: str, words: tuple[str, ...] = words) -> float:
            return pool.state.volctl(*words, name)

        pair = paired(partial(of, "big"), partial(of, "small"), pool.state.runs)
        yield times(f"{what} of 1 GiB of data, {pool.kind}", pair, "of 16 MiB", 1.2, pool.state.runs)


# -- an image


def from_image(pool: Pool, image: Path) -> Row:
    """The whole command less the import floor; LVM's own calls are told apart, for the bar knows of the bytes only."""
    size = virtual_size(image) + TAIL
    fastest = min(DURABLE, key=lambda way: convert(pool, image, size, way)[0])
    calls = []

    def ours() -> float:
        words = ("create", "image", "--size", f"{size // MiB}M", "--from-image", str(image))
        taken = pool.state.volctl(*words) - pool.state.floor()
        pool.state.volctl("delete", "image", "--yes")
        return taken

    def bare() -> float:
        bytes_, lvm = convert(pool, image, size, fastest)
        calls.append(lvm)
        return bytes_

    pair = paired(ours, bare, pool.state.runs)
    zeros = ", zeros behind it" if pool.kind == "thick" else ""
    row = times(
        f"create from {image.name}, {pool.kind}, less the import floor", pair,
        f"qemu-img convert {fastest}{zeros}", 1.10, pool.state.runs,
    )  # fmt: skip
    lvm = statistics.median(calls)
    return Row(row.what, f"{row.figure}; {beside(pair, lvm)}", row.bar, row.kept)


def beside(pair: Pair, lvm: float) -> str:
    return f"{pair.a / (pair.b + lvm):.2f} x with the peer's lvcreate and lvchange -an ({milliseconds(lvm)})"


def convert(pool: Pool, image: Path, size: int, way: str) -> tuple[float, float]:
    """Seconds of qemu-img to a new LV until its bytes are on the disk, and of LVM to make and deactivate that LV.

    A thin LV reads as zeros; on a thick one qemu-img writes the image's holes, and we what is behind it.
    """
    name, path = "peer", f"/dev/{pool.group}/peer"
    lvm = pool.lvcreate(size, name)
    zero = ["--target-is-zero"] if pool.kind == "thin" else []
    words = ["qemu-img", "convert", "-n", *zero, "-W", *DURABLE[way], "-f", "qcow2", "-O", "raw"]
    taken = pool.tool(*words, str(image), path)
    if pool.kind == "thick":
        taken += pool.tool("blkdiscard", "--zeroout", "--offset", str(size - TAIL), path)
    with open(path, "rb") as device:
        taken += seconds_of(lambda: os.fsync(device.fileno()))
    lvm += pool.tool("lvchange", "-an", f"{pool.group}/{name}")
    pool.tool("lvremove", "-qq", "-y", f"{pool.group}/{name}")
    return taken, lvm


def virtual_size(image: Path) -> int:
    """From the header, rounded up to MiB; bytes 24 to 31 of a qcow2."""
    with image.open("rb") as file:
        return -(-int.from_bytes(file.read(32)[24:], "big") // MiB) * MiB


# -- an image that is cached


def cached(pool: Pool, images: list[Path]) -> Iterator[Row]:
    """The second volume from one image, of two sizes."""
    small, big = images
    for image in images:
        pool.caching.volctl("create", "first", "--from-image", str(image))
        pool.caching.volctl("delete", "first", "--yes")

    def second(image: Path) -> float:
        taken = pool.caching.volctl("create", "second", "--from-image", str(image))
        pool.caching.volctl("delete", "second", "--yes")
        return taken

    def bare() -> float:
        """What a clone of a cached LV comes to at a shell."""
        name = f"bare{next(NUMBERS)}"
        origin = next(lv for lv in pool.said("lvs", "--noheadings", "-o", "lv_name", pool.group) if lv[:6] == "image-")
        return pool.tool("lvcreate", "-qq", "-y", "-s", "-ky", "-n", name, f"{pool.group}/{origin}")

    runs = pool.state.runs
    pair = paired(lambda: second(big) - bare(), pool.state.floor, runs)
    yield times(f"the second volume of {big.name}, less the bare lvcreate -s", pair, "import floor", 1.8, runs)
    yield times(
        f"  beside one of {small.name}",
        paired(partial(second, big), partial(second, small), runs),
        small.name,
        1.2,
        runs,
    )
    for image in images:
        before = pool.used()
        pool.caching.volctl("create", image.name[:3] + "kept", "--from-image", str(image))
        more = pool.used() - before
        yield Row(f"  written for it, {image.name}", f"{more / MiB:.2f} MiB of the pool", "<= 1 MiB", more <= MiB)


# -- programs


def children(pool: Pool, image: Path) -> Iterator[Row]:
    """What the kernel was asked to execute, beside volctl itself and the shells that hold its locks."""
    commands = {
        "create blank": ("create", "a", "--size", "8M"),
        "create from an image": ("create", "b", "--from-image", str(image)),
        "clone": ("create", "c", "--from-volume", "a"),
        "snapshot": ("snapshot", "create", "a", "s"),
        "create from a snapshot": ("create", "d", "--from-snapshot", "s"),
        "extend": ("extend", "c", "16M"),
        "attach": ("attach", "c"),
        "list": ("list",),
        "detach": ("detach", "c"),
        "revert": ("revert", "a", "s", "--yes"),
        "delete the snapshot": ("snapshot", "delete", "s", "--yes"),
        "delete": ("delete", "a", "--yes"),
    }
    for what, words in commands.items():
        lvm, others = executed(pool.state, words)
        bar = {"create blank": 4, "list": 1}.get(what) if pool.kind == "thin" else None
        figure = f"{len(lvm)} of LVM ({', '.join(lvm)}), {len(others)} others ({', '.join(others)})"
        limit = f"<= {bar} of LVM" if bar is not None else ""
        yield Row(f"  programs of {what}, {pool.kind}", figure, limit, None if bar is None else len(lvm) <= bar)


def executed(state: State, words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The verbs of LVM, and the other programs."""
    log = state.path / "strace.log"
    run(["strace", "-f", "-qq", "-s", "200", "-e", "trace=execve", "-o", str(log), *state.program, *words], state.env)
    calls = [
        match for line in log.read_text().splitlines() if line.endswith("= 0") and (match := EXECUTED.search(line))
    ]
    programs = [(Path(call[1]).name, call[2].split('", "')) for call in calls[1:]]
    lvm = [arguments[1].strip('"') for name, arguments in programs if name == "lvm"]
    return lvm, [name for name, _ in programs if name not in ("lvm", "sh")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="counted runs of each command")
    parser.add_argument("--only", action="append", choices=DISKS, help="only this kind of LV (repeatable)")
    given = parser.parse_args()
    images = sorted(Path("/in").glob("*.qcow2"), key=lambda path: path.stat().st_size)
    for kind in given.only or DISKS:
        heading(f"On {kind} LVs")
        pool = prepared(kind, given.runs)
        show(blank(pool))
        for image in images[1:]:
            show(from_image(pool, image))
        if kind == "thin":
            for row in (*shared(pool), *cached(pool, [images[0], images[-1]])):
                show(row)
        for row in children(pool, images[0]):
            show(row)


if __name__ == "__main__":
    main()
