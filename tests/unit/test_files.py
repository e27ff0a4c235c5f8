"""Durable file operations, on whatever file system holds the temporary directory."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.backends.conformance import stranger
from volctl import interrupt
from volctl.errors import AccessError, BackendError, NoSpaceError, TimedOut
from volctl.files import Directory, Ownership, Place, allocate, copy, grow, holders, os_open, reflink, translated
from volctl.model import MiB

BLOCK = 4096


def quiet(done: int, total: int) -> None:
    """A progress that nobody sees."""


def test_a_copy_keeps_holes_and_odd_lengths(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.truncate(64 * MiB + 123)
        for offset in (0, 20 * MiB + 77, 64 * MiB + 120):
            os.pwrite(file.fileno(), b"abc", offset)
    told: list[tuple[int, int]] = []
    with source.open("rb") as read, target.open("w+b") as write:
        copy(read.fileno(), write.fileno(), lambda *now: told.append(now))
        grow(write.fileno(), 64 * MiB + 123, preallocate=False)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks + 8
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][1] == 64 * MiB + 123


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=3 * BLOCK)), max_size=6),
    length=st.integers(0, 50 * BLOCK),
    share=st.booleans(),
)
def test_any_copy_equals_its_source(tmp_path: Path, pieces: list[tuple[int, bytes]], length: int, share: bool) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("w+b") as read, target.open("w+b") as write:
        for block, data in pieces:
            os.pwrite(read.fileno(), data, block * BLOCK)
        os.truncate(read.fileno(), length)
        copy(read.fileno(), write.fileno(), quiet, share=share)
        grow(write.fileno(), length + 1, preallocate=False)
    assert target.read_bytes() == source.read_bytes() + b"\0"


def test_a_copy_longer_than_a_flush_is_flushed_and_heard(tmp_path: Path) -> None:
    told: list[int] = []
    with (tmp_path / "source").open("w+b") as read, (tmp_path / "target").open("w+b") as write:
        os.posix_fallocate(read.fileno(), 0, 1)
        for offset in range(0, 144 * MiB, 16 * MiB):
            os.pwrite(read.fileno(), b"x" * 16 * MiB, offset)
        copy(read.fileno(), write.fileno(), lambda done, total: told.append(done))
        assert len(told) >= 9 and told[-1] == 144 * MiB
        with pytest.raises(TimedOut), interrupt.budget(-1):
            copy(read.fileno(), write.fileno(), quiet)


def test_grow_never_cuts_and_a_failure_leaves_the_size(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        grow(file.fileno(), MiB, preallocate=False)
        with pytest.raises(BackendError):
            grow(file.fileno(), MiB - 1, preallocate=False)
        with pytest.raises(TimedOut), interrupt.budget(-1):
            grow(file.fileno(), 2 * MiB, preallocate=True)
        with pytest.raises(OSError):
            grow(file.fileno(), 1 << 62, preallocate=False)
        assert os.fstat(file.fileno()).st_size == MiB and os.fstat(file.fileno()).st_blocks == 0
        allocate(file.fileno(), 0, MiB)
        assert os.fstat(file.fileno()).st_blocks * 512 >= MiB


def test_reflink_tells_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * BLOCK)
    with (tmp_path / "file").open("rb") as source, open("/dev/null", "wb") as target:
        assert not reflink(source.fileno(), target.fileno())


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpaceError),
        (errno.EDQUOT, NoSpaceError),
        (errno.EACCES, AccessError),
        (errno.EPERM, AccessError),
        (errno.EROFS, AccessError),
        (errno.EIO, BackendError),
        (errno.EFBIG, BackendError),
    ],
)
def test_an_oserror_says_what_could_not_be_done(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^cannot create x in /srv: {os.strerror(number)}$"), translated("create x in /srv"):
        raise OSError(number, os.strerror(number))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    directory = Directory(tmp_path / "pool", "db", "files")
    directory.init(Ownership(), again=False, dry_run=False)
    return Place(os.open(tmp_path / "pool", os.O_RDONLY), tmp_path / "pool", True)


def test_a_fresh_file_is_another_inode(place: Place) -> None:
    with place.fresh("file", Ownership()) as fd:
        os.write(fd, b"old")
    with os_open("file", os.O_RDONLY, place.fd) as old:
        with place.fresh("file", Ownership(mode=0o640)):
            pass
        assert os.read(old, 10) == b"old"
    found = place.stat("file")
    assert found and found.st_size == 0 and found.st_mode & 0o777 == 0o640
    os.close(place.fd)


def test_a_directory_that_was_swapped_is_not_touched(place: Place) -> None:
    os.rename(place.path, place.path.with_name("moved"))
    place.path.mkdir()
    with place.fresh("file", Ownership()):
        pass
    assert not list(place.path.iterdir()) and (place.path.with_name("moved") / "file").exists()
    os.close(place.fd)


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "pool", "db", "files")
    before = os.listdir("/proc/self/fd")
    directory.init(Ownership(), again=False, dry_run=False)
    with directory.opened("look") as there:
        there.objects()
    stranger = Directory(tmp_path / "pool", "other", "files")
    with pytest.raises(BackendError), stranger.opened("look"):
        pass
    assert os.listdir("/proc/self/fd") == before


def test_nobody_holds_what_only_we_have_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        assert holders(tmp_path / "file", file.fileno()) == []


@pytest.fixture(params=[(0.1, False), (60, True)], ids=["a glance", "stays"])
def glance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[float, bool]:
    """So many seconds, and whether that is more than a glance; a busy machine takes its time over one."""
    if not request.param[1]:
        monkeypatch.setattr(sys.modules["volctl.files.holders"], "_GLANCE", (0.05,) * 200)
    return request.param  # type: ignore[no-any-return]


def test_who_only_glances_at_a_file_does_not_hold_it(glance: tuple[float, bool], tmp_path: Path) -> None:
    """As every command does that looks at all headers of a pool."""
    (seconds, stays), path = glance, tmp_path / "file"
    path.touch()
    script = f"import sys, time, threading; f = open(sys.argv[1]); threading.Timer({seconds}, f.close).start()"
    with stranger(script, str(path)) as pid, path.open("rb") as file:
        found = holders(path, file.fileno())
        assert [f"(pid {pid})" in holder for holder in found] == [True] * stays


def test_a_lock_of_nobody_who_can_be_seen_is_gone_in_a_moment_or_told(
    glance: tuple[float, bool], tmp_path: Path
) -> None:
    """Our own second descriptor stands for a program that ends."""
    (seconds, stays), path = glance, tmp_path / "file"
    path.touch()
    with path.open("rb") as file, path.open("r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0))
        closing = threading.Timer(seconds, other.close)
        closing.start()
        assert len(holders(path, file.fileno())) == stays
        closing.cancel()
