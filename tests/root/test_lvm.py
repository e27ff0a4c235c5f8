"""The conformance suite on real LVM: thin, thick and raid1, in a group whose name has hyphens."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from tests.backends.conformance import HEAD, SIZE, TAIL, Act, Conformance, new, quiet, stranger
from tests.forked import forked, was_killed
from tests.root.lvm_rig import active, lvs, make, run, volume_group, words
from volctl import command
from volctl.backend import Backend
from volctl.model import MiB, Object

STRIDE = 11  # odd: before a program, and while one runs


class Suite(Conformance):
    holds_files = False
    least_steps = 1  # before its first program: how long one runs is for the machine to say
    lost = False
    options: ClassVar[dict[str, object]]

    def backend(self, directory: Path, database: str) -> Backend:
        return make(directory.name, database, **self.options)

    @pytest.fixture(scope="class")
    @classmethod
    def group(cls, disks: list[Path]) -> Iterator[Path]:
        """A group for all tests of a class, with a thin pool: both take seconds to make."""
        with volume_group(disks[:2], f"t-{uuid.uuid4().hex[:6]}-g") as path:
            if cls.options["provisioning"] == "thin":
                run("lvcreate", "-y", "--type", "thin-pool", "-l", "90%VG", "-Zy", "-n", "volctl", path.name)
                run("lvchange", "-y", "--errorwhenfull", "y", f"{path.name}/volctl")
            yield path

    @pytest.fixture
    def directory(self, group: Path) -> Iterator[Path]:
        """The group, not ours yet; every test leaves its LVs inactive."""
        yield group
        run("udevadm", "settle")
        if self.lost:
            run("vgrename", f"{group.name}-away", group.name)
        left = [line.split() for line in run("lvs", "--noheadings", "-o", "lv_name,lv_active", group.name).splitlines()]
        tags = words("vgs", "--noheadings", "-o", "vg_tags", group.name)
        names = [f"{group.name}/{name}" for name, *_ in left if name != "volctl"]
        if names:
            run("lvremove", "-y", *names, check=False)
        if tags:
            run("vgchange", *[f"--deltag={mark}" for mark in tags[0].split(",")], group.name)
        assert [name for name, *active in left if active == ["active"] and name != "volctl"] == []

    @pytest.fixture
    def volume(self, pool: Backend) -> Object:
        volume = new()
        pool.create(volume, SIZE)
        with active(pool, volume) as path, path.open("r+b") as file:
            file.write(HEAD)
            file.seek(SIZE - len(TAIL))
            file.write(TAIL)
        return volume

    def lose(self, directory: Path) -> None:
        run("vgrename", directory.name, directory.name + "-away")
        self.lost = True

    def write(self, backend: Backend, volume: Object, offset: int, data: bytes) -> None:
        with active(backend, volume) as path, path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def leftovers(self, pool: Backend) -> int:
        names = set(lvs(pool.pool())) - {"volctl"}
        return len(names - {target.name for target in pool.objects()})

    def killed_at(self, step: int, pool: Backend, act: Act) -> bool:
        """Killed before its programs, and 0.15 s after each began; the programs go on."""
        left = step

        def count(line: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if left == 1:
                threading.Thread(target=kill_soon, daemon=True).start()
            left -= 2

        def counted() -> None:
            command.on_run = count
            act(pool)

        return was_killed(forked(counted))

    def test_a_strange_process_is_named(self, pool: Backend, volume: Object) -> None:
        with active(pool, volume) as path:
            with stranger("import sys; f = open(sys.argv[1])", str(path)) as pid:
                assert [f"(pid {pid})" in holder for holder in pool.holders(volume)] == [True]
            assert pool.holders(volume) == []

    def test_a_clone_keeps_holes_unless_the_pool_is_thick(self, pool: Backend, volume: Object) -> None:
        copy = new()
        pool.clone(volume, copy, SIZE + 8 * MiB, quiet)
        with active(pool, copy):
            info = pool.inspect(copy)
        assert info and (info.allocated <= MiB if pool.capabilities.thin else info.allocated >= SIZE + 8 * MiB)


def kill_soon() -> None:
    time.sleep(0.15)
    os.kill(os.getpid(), signal.SIGKILL)


class TestThin(Suite):
    stride = STRIDE
    options: ClassVar[dict[str, object]] = {"provisioning": "thin"}


class TestThick(Suite):
    stride = STRIDE
    options: ClassVar[dict[str, object]] = {"provisioning": "thick"}


class TestRaid1(Suite):
    options: ClassVar[dict[str, object]] = {"provisioning": "thick", "mirrors": 1, "clear": "none"}
    stride = 5  # a mirror takes seconds to make here
