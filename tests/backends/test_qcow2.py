from __future__ import annotations

import itertools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import BuiltinFunctionType, FrameType

import pytest

from backends.qcow2 import Qcow2
from tests import qcow2_files
from tests.backends.conformance import Act, Conformance, new, quiet
from tests.forked import PATIENCE, forked, was_killed
from tests.sampling import numbers, sampled
from volctl import command, held
from volctl.backend import Backend, Setup
from volctl.db.chains import StoredChains, noted
from volctl.db.store import Store, open_store
from volctl.errors import InUseError
from volctl.model import KiB, MiB, Object
from volctl.qcow2 import tool
from volctl.qcow2.qmp import Monitor

PROGRAMS = {tool._run.__code__, command.run_server.__code__, Monitor.execute.__code__}


class Countdown:
    """For `sys.setprofile`: kill -9 at the given step."""

    def __init__(self, step: int) -> None:
        self.left = step
        self.pid = os.getpid()

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if os.getpid() != self.pid:
            return  # a program that is being started
        name = arg.__name__ if event == "c_call" and isinstance(arg, BuiltinFunctionType) else ""
        programs = event in ("call", "return") and frame.f_code in PROGRAMS
        rows = event == "return" and frame.f_code is StoredChains.note.__code__
        if name in ("link", "rename", "unlink", "fsync", "mkdir", "ioctl", "send") or programs or rows:
            if self.left == 0:
                os.kill(self.pid, signal.SIGKILL)
            self.left -= 1


class OnRows:
    """Backends whose chains are in a database of their own."""

    @pytest.fixture(autouse=True)
    def rows(self, tmp_path: Path) -> Iterator[None]:
        self.store: Store = open_store(tmp_path / "rows.db")
        yield
        self.store.close()

    def backend(self, directory: Path, database: str, **options: object) -> Qcow2:
        chains = StoredChains(self.store, "disks")
        return Qcow2(Setup("disks", {"directory": str(directory), **options}, database, chains=chains))

    def killed_at(self, step: int, pool: Backend, act: Act) -> bool:
        """Before or after one of the steps that change something: a file's name, a program, a row.

        True when the programs of the killed one have ended, too: until then it would hold its lock.
        """
        lives, lock = os.pipe()

        def counted() -> None:
            held.locks.add(lock)
            fresh = self.afresh(pool)
            sys.setprofile(Countdown(step))
            act(fresh)
            sys.setprofile(None)

        status = forked(counted)
        os.close(lock)
        assert select.select([lives], [], [], PATIENCE)[0], "its programs live on"
        os.close(lives)
        return was_killed(status)

    def afresh(self, pool: Backend) -> Qcow2:
        """In a child that was forked: a connection of its own."""
        setup = replace(pool.setup, chains=StoredChains(open_store(self.store.path), "disks"))
        return Qcow2(setup)


class TestQcow2(OnRows, Conformance):
    least_steps = 3

    def write(self, backend: Backend, volume: Object, offset: int, data: bytes) -> None:
        qcow2_files.write(backend.path(volume), offset, data)

    def others(self, pool: Backend) -> int:
        """The marker, and the layers that are needed: a snapshot's, or one that several files lie over."""
        return 1 + len(needed_layers(pool.path(Object("volume", str(uuid.uuid4()))).parent))


class TestCutOff(OnRows):
    """A hidden layer that two volumes lie over: who takes one of them away merges it with the other."""

    @pytest.mark.parametrize("larger", ["the layer", "what lies over it"])
    def test_a_merge_that_was_cut_off_is_ended_by_who_calls_again(self, larger: str, tmp_path: Path) -> None:
        pool, volume, clone = self._two(tmp_path, b"w" * (4 if larger == "the layer" else 256) * KiB)
        content = qcow2_files.read(pool.path(volume))
        for _ in self._cut_off(pool, lambda pool: pool.delete(clone)):
            assert qcow2_files.read(pool.path(volume)) == content

    def test_a_layer_that_was_in_use_goes_however_its_merge_is_cut_off(self, tmp_path: Path) -> None:
        """By the files, nobody knows what none of them lies over any more."""
        pool, volume, clone = self._two(tmp_path, b"w" * 256 * KiB)
        (layer,) = pool.path(volume).parent.glob("layer-*")
        with layer.open() as file, subprocess.Popen(["sleep", "600"], stdin=file) as holder:
            assert not self.killed_at(1000, pool, lambda pool: pool.delete(clone)) and layer.exists()
            holder.kill()
        for _ in self._cut_off(pool, lambda pool: pool.detach(volume)):
            pass

    def _two(self, home: Path, written: bytes) -> tuple[Qcow2, Object, Object]:
        """A volume, to which that was written since, and a clone."""
        pool = self.backend(home / "pool", "db")
        pool.init()
        volume, clone, snapshot = new(), new(), new("snap")
        pool.create(volume, MiB)
        qcow2_files.write(pool.path(volume), 0, b"v" * 64 * KiB)
        pool.snapshot(volume, snapshot)
        pool.clone(snapshot, clone, MiB, quiet)
        pool.delete_snapshot(volume, snapshot)
        qcow2_files.write(pool.path(volume), 128 * KiB, written)
        return pool, volume, clone

    def _cut_off(self, pool: Qcow2, act: Act) -> Iterator[int]:
        """Killed at each step and called again, from the same beginning: nothing of the layer is left."""
        directory = pool.path(new()).parent
        kept, rows = directory.with_name("kept"), self._noted()
        directory.rename(kept)
        for step in (number - 1 for number in numbers("cut off", 2, 7)):
            subprocess.run(["cp", "-a", kept, directory], check=True)
            for name, parents in rows.items():
                StoredChains(self.store, "disks").note(name, parents)
            killed = self.killed_at(step, pool, act)
            act(pool)
            assert layers_in(directory) == [] and self._noted() == {}, f"killed at step {step}"
            yield step
            shutil.rmtree(directory)
            if not killed:
                break
        assert step > 6

    def _noted(self) -> dict[str, set[str | None]]:
        with self.store.read() as tx:
            return {name: parents for (_, name), parents in noted(tx).items()}


def needed_layers(directory: Path) -> list[str]:
    """Those of a snapshot, and those that several files lie over."""
    names = [name for name in os.listdir(directory) if name.startswith(("volume-", "layer-"))]
    below = [qcow2_files.backing(directory / name) for name in names]
    return [
        name
        for name in names
        if name.startswith("layer-") and (os.stat(directory / name).st_nlink == 2 or below.count(name) > 1)
    ]


@dataclass
class InMemory:
    """Rows that are quickly copied."""

    rows: dict[str, set[str | None]] = field(default_factory=dict)

    def parents(self, name: str) -> set[str | None]:
        return self.rows.get(name, {None})

    def children(self, name: str) -> list[str]:
        return sorted(child for child, parents in self.rows.items() if name in parents)

    def note(self, name: str, parents: Collection[str | None]) -> None:
        self.rows[name] = set(parents)
        if self.rows[name] == {None}:
            del self.rows[name]


def in_memory(directory: Path, rows: InMemory) -> Qcow2:
    return Qcow2(Setup("disks", {"directory": str(directory), "cluster_size": "4K"}, "db", chains=rows))


def family(pool: Qcow2) -> dict[Object, bytes]:
    """Over an image: a volume with two snapshots, a clone of the first with a snapshot, and a clone of the volume.

    Each was written to after it was taken, in places that the others have, too, and grew.
    """
    image, volume, clone, other = new("image"), new(), new(), new()
    first, second, third = new("snap"), new("snap"), new("snap")
    pool.create(image, 64 * KiB)
    write(pool, image, 1)
    pool.clone(image, volume, 64 * KiB, quiet)
    write(pool, volume, 2)
    pool.snapshot(volume, first)
    write(pool, volume, 3)
    pool.extend(volume, 96 * KiB)
    write(pool, volume, 4)
    pool.snapshot(volume, second)
    pool.clone(first, clone, 80 * KiB, quiet)
    write(pool, clone, 5)
    pool.snapshot(clone, third)
    write(pool, clone, 6)
    pool.clone(volume, other, 128 * KiB, quiet)
    write(pool, other, 7)
    write(pool, volume, 8)
    return {each: qcow2_files.read(pool.path(each)) for each in (volume, first, second, clone, third, other)}


def write(pool: Qcow2, target: Object, seed: int) -> None:
    """A few pieces at places of its own, ends included."""
    info = pool.inspect(target)
    assert info
    for number in range(3):
        at = (seed * 7 + number * 5) * 4 * KiB % info.size
        qcow2_files.write(pool.path(target), at, bytes([seed * 16 + number]) * 3000)


class TestDeleteOrders:
    """A tree of six snapshots and clones over an image base, taken apart in every order."""

    @pytest.mark.parametrize("first", sampled(range(6), "orders", 3))
    def test_every_order_leaves_every_other_content(self, first: int) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as root:
            rows = InMemory()
            pool = in_memory(Path(root, "pool"), rows)
            pool.init()
            contents = family(pool)
            assert len(set(contents.values())) == 6 and all(any(content) for content in contents.values())
            victims = [list(contents)[first]]
            assert self._take_apart(Path(root, "pool"), rows, contents, victims) == 326  # beginnings of 120 orders

    @pytest.mark.parametrize("lost", range(7))
    def test_rows_of_another_time_cost_no_content(self, lost: int, tmp_path: Path) -> None:
        """As when an older database was put back: nothing is known of one file, or of all."""
        rows = InMemory()
        pool = in_memory(tmp_path / "pool", rows)
        pool.init()
        contents = family(pool)
        names = sorted(rows.rows)
        assert len(names) == 6
        left = {name: rows.rows[name] for name in names if lost < len(names) and name != names[lost]}
        for first, second in itertools.permutations(contents, 2):
            copied = tmp_path / "copied"
            subprocess.run(["cp", "-a", tmp_path / "pool", copied], check=True)
            pool = in_memory(copied, InMemory(deepcopy(left)))
            for victim in (first, second):
                pool.delete(victim)
            for other in contents.keys() - {first, second}:
                assert qcow2_files.read(pool.path(other)) == contents[other], f"{other.name} without {first} {second}"
            shutil.rmtree(copied)

    def _take_apart(
        self, directory: Path, rows: InMemory, contents: dict[Object, bytes], victims: Iterable[Object]
    ) -> int:
        done = 0
        for victim in victims:
            with tempfile.TemporaryDirectory(dir=directory.parent) as root:
                copied, noted = Path(root, "pool"), InMemory(deepcopy(rows.rows))
                subprocess.run(["cp", "-a", directory, copied], check=True)
                pool = in_memory(copied, noted)
                pool.delete(victim)
                left = {other: content for other, content in contents.items() if other != victim}
                for other, content in left.items():
                    assert qcow2_files.read(pool.path(other)) == content, f"{other.name} without {victim.name}"
                assert sorted(needed_layers(copied)) == layers_in(copied), f"without {victim.name}"
                if not left:
                    assert [each.kind for each in pool.objects()] == ["image"] and not noted.rows
                done += 1 + self._take_apart(copied, noted, left, left)
        return done


def layers_in(directory: Path) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.startswith("layer-"))


@dataclass
class Raced(InMemory):
    """Whoever is making `made` ends that just when its rows were looked at."""

    made: str = ""

    def parents(self, name: str) -> set[str | None]:
        seen = super().parents(name)
        if name == self.made and None in seen:
            self.rows[name] = seen - {None}
        return seen


def test_who_looks_without_a_lock_writes_over_nothing(tmp_path: Path) -> None:
    """An image is asked after by those who do not hold the locks of what is just being made over it."""
    rows, image, source, target = Raced(), new("image"), new(), new()
    pool = in_memory(tmp_path / "pool", rows)
    pool.init()
    pool.create(image, 64 * KiB)
    pool.clone(image, source, 64 * KiB, quiet)
    rows.note(target.name, {None, image.name})
    rows.made, frozen = target.name, f"layer-{uuid.uuid4()}"
    rows.note(frozen, {image.name})
    with pytest.raises(InUseError):
        pool.delete(image)
    assert rows.rows[target.name] == rows.rows[frozen] == {image.name}
