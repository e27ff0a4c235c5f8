"""The contract of `volctl.backend`, a test for each sentence. A backend's tests are a subclass:

    class TestTape(Conformance):
        def backend(self, directory: Path, database: str) -> Backend:
            return Tape(Setup("tapes", {"directory": str(directory)}, database))

A backend whose pool is not a directory overrides `lose` and `leftovers` as well, one without files
`write`, one whose steps are processes `killed_at`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests import qcow2_files
from tests.forked import forked, was_killed
from tests.sampling import numbers
from volctl import interrupt
from volctl.backend import Backend, Target
from volctl.errors import BackendError, ConflictError, TimedOut
from volctl.model import Json, MiB, Object

SIZE = 4 * MiB
HEAD, TAIL, WRITTEN = b"head of the volume", b"its last bytes", b"w" * 10000
Act = Callable[[Backend], object]


def new(kind: str = "volume") -> Object:
    return Object(kind, str(uuid.uuid4()))  # type: ignore[arg-type]


def quiet(done: int, total: int) -> None:
    """A progress that nobody sees."""


class Conformance:
    holds_files = True  # the pool is a directory in which others may put files
    carries = True  # its objects carry what they are about: from when they are made, or only when they are whole
    least_steps = 6  # at which an operation can be killed
    stride = 3  # of so many steps one is taken; more where the same code runs twice, or steps are slow

    def backend(self, directory: Path, database: str) -> Backend:
        raise NotImplementedError

    def lose(self, directory: Path) -> None:
        """Take the storage away, as an unmounted file system is."""
        (directory / ".volctl").rename(directory.with_name("marker"))

    def write(self, backend: Backend, volume: Object, offset: int, data: bytes) -> None:
        with backend.path(volume).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        (tmp_path / "pool").mkdir()
        return tmp_path / "pool"

    @pytest.fixture
    def database(self) -> str:
        return str(uuid.uuid4())

    @pytest.fixture
    def pool(self, directory: Path, database: str) -> Backend:
        pool = self.backend(directory, database)
        pool.init()
        return pool

    @pytest.fixture
    def volume(self, pool: Backend) -> Object:
        """4 MiB with data at both ends and a hole between."""
        volume = new()
        pool.create(volume, SIZE)
        self.write(pool, volume, 0, HEAD)
        self.write(pool, volume, SIZE - len(TAIL), TAIL)
        return volume

    @pytest.fixture
    def snapshot(self, pool: Backend, volume: Object) -> Object:
        snapshot = new("snap")
        pool.snapshot(volume, snapshot)
        return snapshot

    def read(self, pool: Backend, target: Object) -> bytes:
        with pool.reading(target) as where:
            return content_of(where)

    def content(self, size: int = SIZE) -> bytes:
        return HEAD + bytes(SIZE - len(HEAD) - len(TAIL)) + TAIL + bytes(size - SIZE)

    # the pool

    def test_a_pool_is_unusable_until_initialised(self, directory: Path, database: str) -> None:
        pool = self.backend(directory, database)
        assert [problem.fatal for problem in pool.check()] == [True]
        assert pool.init(dry_run=True) and pool.check()
        assert pool.init() and not pool.check()
        assert pool.init() == []

    def test_another_databases_pool_is_refused(self, pool: Backend, volume: Object, directory: Path) -> None:
        stranger = self.backend(directory, str(uuid.uuid4()))
        assert stranger.check()[0].fatal
        for dry_run in (True, False):
            with pytest.raises(ConflictError):
                stranger.init(dry_run=dry_run)
        with pytest.raises(BackendError, match="another database"):
            stranger.create(new(), SIZE)
        assert not pool.check() and pool.objects() == [volume]

    def test_no_method_succeeds_without_the_storage(
        self, pool: Backend, volume: Object, snapshot: Object, directory: Path
    ) -> None:
        self.lose(directory)
        assert pool.check()[0].fatal
        for act in everything(volume, snapshot):
            with pytest.raises(BackendError):
                act(pool)
        assert pool.pool() and pool.free_space_key() and pool.capabilities.granule

    def test_stats_are_bytes(self, pool: Backend) -> None:
        stats = pool.stats()
        assert stats.total is not None and stats.free is not None and 0 < stats.free <= stats.total

    # create

    def test_a_blank_has_its_size_and_reads_as_zeros(self, pool: Backend) -> None:
        blank = new()
        pool.create(blank, SIZE)
        assert self.size(pool, blank) == SIZE and not any(self.read(pool, blank))

    def test_create_begins_anew(self, pool: Backend, volume: Object) -> None:
        pool.create(volume, SIZE // 2)
        assert self.size(pool, volume) == SIZE // 2 and not any(self.read(pool, volume))

    def size(self, pool: Backend, target: Object) -> int | None:
        info = pool.inspect(target)
        return info.size if info else None

    # clone

    @pytest.mark.parametrize("kind", ["volume", "snap"])
    @pytest.mark.parametrize("size", [SIZE, SIZE + 3 * MiB])
    def test_a_clone_reads_as_its_source_then_zeros(
        self, pool: Backend, volume: Object, snapshot: Object, kind: str, size: int
    ) -> None:
        copy, told = new(), list[tuple[int, int]]()
        pool.clone(volume if kind == "volume" else snapshot, copy, size, lambda *now: told.append(now))
        assert self.read(pool, copy) == self.content(size)
        assert told and told[-1][0] == told[-1][1]

    def test_a_clone_lives_its_own_life(self, pool: Backend, volume: Object) -> None:
        copy = new()
        pool.clone(volume, copy, SIZE, quiet)
        self.write(pool, copy, 0, b"other")
        assert self.read(pool, volume) == self.content()
        self.write(pool, volume, 0, b"third")
        assert self.read(pool, copy).startswith(b"other")
        pool.delete(volume)
        assert self.size(pool, copy) == SIZE

    def test_a_clone_begins_anew(self, pool: Backend, volume: Object) -> None:
        copy = new()
        pool.create(copy, 2 * SIZE)
        self.write(pool, copy, MiB, b"old")
        pool.clone(volume, copy, SIZE, quiet)
        assert self.read(pool, copy) == self.content()

    def test_a_clone_keeps_holes_unless_the_pool_is_thick(self, pool: Backend, volume: Object) -> None:
        copy = new()
        pool.clone(volume, copy, SIZE + 8 * MiB, quiet)
        info = pool.inspect(copy)
        assert info and (info.allocated <= MiB if pool.capabilities.thin else info.allocated >= SIZE + 8 * MiB)

    def test_a_source_that_is_gone_or_too_large_is_an_error(self, pool: Backend, volume: Object) -> None:
        with pytest.raises(BackendError):
            pool.clone(new(), new(), SIZE, quiet)
        with pytest.raises(BackendError):
            pool.clone(volume, new(), SIZE // 2, quiet)
        with pytest.raises(BackendError):
            pool.snapshot(new(), new("snap"))

    # snapshots

    def test_a_snapshot_and_its_volume_are_isolated(self, pool: Backend, volume: Object, snapshot: Object) -> None:
        self.write(pool, volume, 0, b"newer")
        assert self.read(pool, snapshot) == self.content()
        pool.snapshot(volume, snapshot)
        assert self.read(pool, snapshot).startswith(b"newer")

    def test_deleting_a_snapshot_leaves_the_others(self, pool: Backend, volume: Object, snapshot: Object) -> None:
        first, last = new("snap"), new("snap")
        pool.snapshot(volume, first)
        pool.snapshot(volume, last)
        for _again in range(2):
            pool.delete_snapshot(volume, first)
        assert pool.inspect(first) is None
        assert all(self.read(pool, kept) == self.content() for kept in (snapshot, last, volume))

    def test_revert_keeps_the_snapshot_and_the_present_size(
        self, pool: Backend, volume: Object, snapshot: Object
    ) -> None:
        size = SIZE + 2 * MiB
        pool.extend(volume, size)
        self.write(pool, volume, 0, b"newer")
        self.write(pool, volume, SIZE + MiB, b"in the tail")
        for _again in range(2):
            pool.revert(volume, snapshot, size)
            assert self.read(pool, volume) == self.content(size)
        assert self.read(pool, snapshot) == self.content()
        self.write(pool, volume, 0, b"later")
        assert self.read(pool, snapshot) == self.content()

    # extend, delete, look

    def test_extend_adds_zeros_and_never_shrinks(self, pool: Backend, volume: Object) -> None:
        for _again in range(2):
            pool.extend(volume, SIZE + MiB)
        assert self.read(pool, volume) == self.content(SIZE + MiB)
        with pytest.raises(BackendError):
            pool.extend(volume, SIZE)
        with pytest.raises(BackendError):
            pool.extend(new(), SIZE)
        assert self.read(pool, volume) == self.content(SIZE + MiB)

    def test_delete_again_is_success(self, pool: Backend, volume: Object, snapshot: Object) -> None:
        pool.delete_snapshot(volume, snapshot)
        for _again in range(2):
            pool.delete(volume)
        assert pool.inspect(volume) is None and pool.objects() == []

    def test_inspect_of_nothing_is_none(self, pool: Backend) -> None:
        assert pool.inspect(new()) is None and pool.holders(new()) == []

    def test_objects_are_ours_only(self, pool: Backend, volume: Object, snapshot: Object, directory: Path) -> None:
        image = new("image")
        pool.create(image, MiB)
        strange = ("volume-1", f"volume-{uuid.uuid4()}.bak", f"Volume-{uuid.uuid4()}", "notes.txt")
        for name in strange if self.holds_files else ():
            (directory / name).write_text("not ours")
        assert sorted(map(str, pool.objects())) == sorted(map(str, (volume, snapshot, image)))
        for target in pool.objects():
            pool.delete(target)
        assert not self.holds_files or all((directory / name).read_text() == "not ours" for name in strange)

    # writing and reading

    @pytest.mark.parametrize("length", [MiB + 7, SIZE, SIZE + 5])
    def test_writing_leaves_the_exact_size(self, pool: Backend, length: int) -> None:
        target = new()
        with pool.writing(target, SIZE) as where:
            assert where.path.is_absolute() and (not where.zeroed or not any(content_of(where)))
            if where.path.is_file() and where.format == "raw":
                where.path.write_bytes(b"x" * length)
            else:
                put(where, b"x" * min(length, SIZE), SIZE)
        data = self.read(pool, target)
        assert len(data) == SIZE and data == (b"x" * length).ljust(SIZE, b"\0")[:SIZE]

    def test_an_error_inside_writing_is_the_callers(self, pool: Backend) -> None:
        target = new()
        with pytest.raises(FileNotFoundError), pool.writing(target, SIZE):
            raise FileNotFoundError("the caller's")
        pool.delete(target)
        assert pool.objects() == []

    def test_writing_begins_anew(self, pool: Backend, volume: Object) -> None:
        with pool.writing(volume, SIZE) as where:
            zeroed = where.zeroed
        assert self.size(pool, volume) == SIZE and not (zeroed and any(self.read(pool, volume)))

    def test_reading_what_is_not_there_is_an_error(self, pool: Backend) -> None:
        with pytest.raises(BackendError), pool.reading(new()):
            pass

    # who holds it

    def test_our_own_descriptors_do_not_count(self, pool: Backend, volume: Object) -> None:
        with pool.reading(volume) as where, where.path.open("rb"):
            assert pool.holders(volume) == []

    def test_a_strange_process_is_named(self, pool: Backend, volume: Object) -> None:
        with stranger("import sys; f = open(sys.argv[1])", str(pool.path(volume))) as pid:
            assert [f"(pid {pid})" in holder for holder in pool.holders(volume)] == [True]
        assert pool.holders(volume) == []

    # interruptions

    def test_every_method_can_be_killed_at_any_step_and_called_again(
        self, pool: Backend, volume: Object, snapshot: Object
    ) -> None:
        for number, (before, act, then) in enumerate(self.repeatable(volume, snapshot)):
            before(pool)
            for step in self.steps(f"method {number}"):
                if not self.killed_at(step, pool, act):
                    break
                act(pool)
                then(pool)
                before(pool)
            assert step >= self.least_steps

    @pytest.mark.parametrize("long", [0, 20])
    def test_an_object_carries_what_it_is_about(self, pool: Backend, volume: Object, long: int) -> None:
        """From when it is whole, whatever is done to it, also where an attribute has no room for it."""
        if not self.carries:
            assert self.carried(pool, volume) is None
            return
        properties = {f"key {number} ☂": "x" * 200 + str(number) for number in range(long)}
        about = {"name": "it", "project": "default", "properties": properties}
        blank, filled, clone, point = (
            replace(new(kind), about=about) for kind in ("volume", "volume", "volume", "snap")
        )
        pool.create(blank, SIZE)
        with pool.writing(filled, SIZE) as where:
            assert (self.carried(pool, filled) is None) == pool.capabilities.carried_when_whole
            put(where, WRITTEN, SIZE)
        pool.clone(filled, clone, SIZE, quiet)
        pool.snapshot(clone, point)
        pool.extend(clone, 2 * SIZE)
        pool.revert(clone, point, 2 * SIZE)
        assert [self.carried(pool, target) for target in (blank, filled, clone, point)] == [about] * 4
        assert self.carried(pool, volume) is None
        for changed in ({"name": "other"}, about | {"bootable": True}):
            for target in (clone, point):
                pool.describe(replace(target, about=changed))
                assert self.carried(pool, target) == changed
        pool.delete_snapshot(clone, point)
        assert self.carried(pool, clone) == changed
        for target in (blank, filled, clone):
            pool.delete(target)
        assert pool.objects() == [volume] and self.leftovers(pool) == 0

    def carried(self, pool: Backend, target: Object) -> Json | None:
        (found,) = (found for found in pool.described() if found == target)
        return found.about

    def test_delete_takes_what_a_killed_revert_left(self, pool: Backend, snapshot: Object) -> None:
        victim = new()
        written(pool.writing, victim)
        for step in self.steps("revert"):
            if not self.killed_at(step, pool, lambda pool: pool.revert(victim, snapshot, SIZE)):
                break
            pool.delete(victim)
            assert len(pool.objects()) == 2 and self.leftovers(pool) == 0
            written(pool.writing, victim)
        assert step >= self.least_steps

    def steps(self, what: str) -> Iterator[int]:
        """At which to be killed: a sample without an end."""
        return (number - 1 for number in numbers(f"{type(self).__name__} {what}", self.stride, self.least_steps))

    def killed_at(self, step: int, pool: Backend, act: Act) -> bool:
        return killed_at(step, pool, act)

    def leftovers(self, pool: Backend) -> int:
        """Things in the pool that are no objects, the marker aside."""
        return len(os.listdir(pool.path(new()).parent)) - self.others(pool) - len(pool.objects())

    def repeatable(self, volume: Object, snapshot: Object) -> Iterator[tuple[Act, Act, Act]]:
        """What is there before each operation, the operation, what holds when it was killed and called again."""
        target, other = new(), new("snap")

        def absent(pool: Backend) -> None:
            pool.delete(target)

        def full(pool: Backend) -> None:
            written(pool.writing, target)

        def snapped(pool: Backend) -> None:
            pool.snapshot(volume, other)

        def reads(which: Object, data: bytes) -> Act:
            def look(pool: Backend) -> None:
                assert self.read(pool, which) == data

            return look

        def gone(which: Object) -> Act:
            def look(pool: Backend) -> None:
                assert pool.inspect(which) is None
                assert self.leftovers(pool) == 0

            return look

        filled = WRITTEN.ljust(SIZE, b"\0")
        yield absent, lambda pool: pool.create(target, SIZE), reads(target, bytes(SIZE))
        yield absent, lambda pool: pool.clone(volume, target, 2 * SIZE, quiet), reads(target, self.content(2 * SIZE))
        yield absent, full, reads(target, filled)
        yield full, lambda pool: pool.extend(target, SIZE + MiB), reads(target, filled + bytes(MiB))
        yield full, lambda pool: pool.revert(target, snapshot, SIZE), reads(target, self.content())
        yield full, lambda pool: pool.delete(target), gone(target)
        yield lambda pool: pool.delete_snapshot(volume, other), snapped, reads(other, self.content())
        yield snapped, lambda pool: pool.delete_snapshot(volume, other), gone(other)

    def others(self, pool: Backend) -> int:
        """Files in the pool that are no objects: the marker."""
        return 1

    def test_the_deadline_is_heard(self, pool: Backend, volume: Object) -> None:
        target, at_once = new(), pool.capabilities.constant_time_clone
        with suppress(TimedOut) if at_once else pytest.raises(TimedOut), interrupt.budget(-1):
            pool.clone(volume, target, SIZE, quiet)
        pool.delete(target)
        assert pool.objects() == [volume]


def everything(volume: Object, snapshot: Object) -> list[Act]:
    """One call of every method that touches storage; also those that would find nothing to do."""
    absent = new()
    return [
        lambda pool: pool.stats(),
        lambda pool: pool.create(absent, SIZE),
        lambda pool: pool.clone(volume, absent, SIZE, quiet),
        lambda pool: clone_image(pool, absent),
        lambda pool: written(pool.writing, absent),
        lambda pool: pool.reading(volume).__enter__(),
        lambda pool: pool.extend(volume, SIZE),
        lambda pool: pool.snapshot(volume, new("snap")),
        lambda pool: pool.delete_snapshot(volume, snapshot),
        lambda pool: pool.delete_snapshot(volume, new("snap")),
        lambda pool: pool.revert(volume, snapshot, SIZE),
        lambda pool: pool.delete(volume),
        lambda pool: pool.delete(absent),
        lambda pool: pool.inspect(absent),
        lambda pool: pool.holders(absent),
        lambda pool: pool.objects(),
    ]


def clone_image(pool: Backend, target: Object) -> None:
    """A backend that clones no image in place says so without looking."""
    with open(__file__, "rb") as image:
        if not pool.clone_image(image.fileno(), target, SIZE):
            raise BackendError("it cannot clone in place")


def written(writing: Callable[[Object, int], object], target: Object) -> None:
    with writing(target, SIZE) as where:  # type: ignore[attr-defined]
        assert isinstance(where, Target)
        put(where, WRITTEN, size=SIZE)


def content_of(where: Target) -> bytes:
    return qcow2_files.read(where.path) if where.format == "qcow2" else where.path.read_bytes()


def put(where: Target, data: bytes, size: int) -> None:
    """Write as a copy must: what is to read as zeros is written, too, where the target is not blank."""
    if where.format == "qcow2":
        qcow2_files.write(where.path, 0, data)
        return
    with where.path.open("r+b") as file:
        file.write(data if where.zeroed else data.ljust(size, b"\0"))


def killed_at(step: int, pool: Backend, act: Act) -> bool:
    """Do it in a child that is killed before its `step`th call of a built-in; False if it came to its end."""

    def counted() -> None:
        sys.setprofile(Countdown(step))
        act(pool)
        sys.setprofile(None)

    return was_killed(forked(counted))


class Countdown:
    """For `sys.setprofile`: kill -9 before the given call of a built-in function (all system calls are)."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, frame: object, event: str, arg: object) -> None:
        if event == "c_call" and getattr(arg, "__module__", None) in ("posix", "fcntl", "io", "_io"):
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self.left -= 1


class stranger:
    """A process that is no child of ours: runs Python code, then says it is ready, until the block ends."""

    def __init__(self, code: str, *args: str) -> None:
        self.code = f"{code}\nprint('ready', flush=True)\nimport time\ntime.sleep(600)"
        self.args = args

    def __enter__(self) -> int:
        launch = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:], stdout=1); print(p.pid, flush=True)"
        argv = [sys.executable, "-c", launch, sys.executable, "-c", self.code, *self.args]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as launcher:
            assert launcher.stdout
            said = {launcher.stdout.readline().strip(), launcher.stdout.readline().strip()}
            launcher.stdout.close()
        self.pid = int((said - {"ready"}).pop())
        return self.pid

    def __exit__(self, *error: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        with suppress(FileNotFoundError, ProcessLookupError):  # it may be reaped at any instant
            while "Z" not in Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[:1]:
                time.sleep(0.01)
