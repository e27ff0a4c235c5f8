from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.loop import Loop
from tests.backends.conformance import SIZE, Conformance, killed_at, new, quiet, stranger
from volctl.backend import Backend, Setup
from volctl.errors import AccessError, BackendError, ConfigError, ConflictError, NoSpaceError
from volctl.model import GiB, MiB, Object

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount and to attach loop devices")


class TestLoop(Conformance):
    def backend(self, directory: Path, database: str) -> Backend:
        return Loop(Setup("files", {"directory": str(directory)}, database))


class TestPreallocated(Conformance):
    stride = 3

    def backend(self, directory: Path, database: str) -> Backend:
        return Loop(Setup("files", {"directory": str(directory), "preallocate": "falloc"}, database))

    def test_space_is_taken_at_once(self, pool: Backend, volume: Object) -> None:
        copy, target = new(), new()
        pool.clone(volume, copy, SIZE, quiet)
        pool.extend(copy, 2 * SIZE)
        with pool.writing(target, SIZE) as where:
            where.path.write_bytes(b"truncated first, as qemu-img does")
        for which, least in ((volume, SIZE), (copy, 2 * SIZE), (target, SIZE)):
            info = pool.inspect(which)
            assert info and info.allocated >= least
        assert not pool.capabilities.thin and not pool.capabilities.constant_time_clone


class TestOnReflinks(TestLoop):
    stride = 2

    @pytest.fixture
    def directory(self, reflink_mount: Path) -> Iterator[Path]:
        directory = reflink_mount / str(uuid.uuid4())
        directory.mkdir()
        yield directory
        subprocess.run(["rm", "-r", str(directory)], check=True)

    def test_a_snapshot_and_a_clone_of_1_gib_share_its_blocks(self, pool: Backend, directory: Path) -> None:
        volume, snapshot, clone = new(), new("snap"), new()
        with pool.writing(volume, GiB) as where, where.path.open("r+b") as file:
            for offset in range(0, GiB, 8 * MiB):
                os.pwrite(file.fileno(), os.urandom(MiB), offset)
        before = free(directory)
        assert pool.capabilities.constant_time_clone
        pool.snapshot(volume, snapshot)
        pool.clone(snapshot, clone, GiB + MiB, quiet)
        assert before - free(directory) < 8 * MiB
        pool.revert(volume, snapshot, GiB)
        assert before - free(directory) < 8 * MiB
        assert extents(pool.path(clone)) == extents(pool.path(snapshot)) == extents(pool.path(volume))

    @pytest.mark.parametrize("length", [SIZE, SIZE - 1000])
    def test_an_image_is_cloned_in_place(self, pool: Backend, directory: Path, length: int) -> None:
        image, target = directory / "image.raw", new()
        image.write_bytes(os.urandom(MiB) + bytes(2 * MiB) + os.urandom(length - 3 * MiB))
        with image.open("rb") as file:
            assert pool.clone_image(file.fileno(), target, 2 * SIZE)
        assert self.read(pool, target) == image.read_bytes().ljust(2 * SIZE, b"\0")
        assert extents(pool.path(target))[0][:2] == extents(image)[0][:2]


def free(directory: Path) -> int:
    os.sync()
    stats = os.statvfs(directory)
    return stats.f_bfree * stats.f_frsize


def extents(path: Path) -> list[tuple[int, int, int]]:
    """(logical, physical, length) of each extent in bytes, from FS_IOC_FIEMAP."""
    count = 256
    asked = bytearray(struct.pack("QQIIII", 0, 1 << 62, 1, 0, count, 0) + bytes(56 * count))
    with path.open("rb") as file:
        fcntl.ioctl(file, 0xC020660B, asked)
    mapped = struct.unpack_from("I", asked, 20)[0]
    return [struct.unpack_from("QQQ", asked, 32 + 56 * number) for number in range(mapped)]


def make(directory: Path, **options: object) -> Loop:
    pool = Loop(Setup("files", {"directory": str(directory), **options}, "db"))
    pool.init()
    return pool


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "directory"),
        ({"directory": "relative"}, "absolute"),
        ({"directory": "/srv", "preallocate": "full"}, "preallocate"),
        ({"directory": "/srv", "mode": "rw"}, "mode"),
        ({"directory": "/srv", "mode": 600}, "mode"),
        ({"directory": "/srv", "owner": "no such user"}, "owner"),
        ({"directory": "/srv", "size": 1}, "size"),
    ],
)
def test_a_wrong_option_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Loop(Setup("files", options, "db"))


def test_making_a_backend_touches_nothing(tmp_path: Path) -> None:
    pool = Loop(Setup("files", {"directory": str(tmp_path / "none")}, "db"))
    assert not pool.capabilities.constant_time_clone and pool.check()[0].hint and not list(tmp_path.iterdir())


def test_init_makes_the_last_component_only(tmp_path: Path) -> None:
    pool = Loop(Setup("files", {"directory": str(tmp_path / "new")}, "db"))
    assert len(pool.init(dry_run=True)) == 2 and not list(tmp_path.iterdir())
    assert len(pool.init()) == 2 and not pool.check()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    with pytest.raises(BackendError):
        Loop(Setup("files", {"directory": str(tmp_path / "a/b")}, "db")).init()


def test_init_refuses_unmarked_objects_but_not_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / new().name).touch()
    with pytest.raises(ConflictError, match=r"holds volume-.*, which has no row"):
        make(tmp_path)
    next(tmp_path.glob("volume-*")).unlink()
    make(tmp_path)


def test_the_builtin_pool_takes_over_an_empty_one_only(tmp_path: Path) -> None:
    options = {"directory": str(tmp_path)}
    first = Loop(Setup("local", options, "one", builtin=True))
    first.init()
    second = Loop(Setup("local", options, "two", builtin=True))
    assert second.init() and not second.check() and first.check()
    second.create(new(), MiB)
    with pytest.raises(ConflictError):
        first.init()


@pytest.mark.parametrize("marker", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_marker_is_not_ours(tmp_path: Path, marker: bytes) -> None:
    pool = make(tmp_path)
    (tmp_path / ".volctl").write_bytes(marker)
    assert "damaged" in pool.check()[0].message
    with pytest.raises(BackendError):
        pool.delete(new())


def test_a_killed_init_can_be_done_again(tmp_path: Path) -> None:
    step = 0
    path = tmp_path / "pool"
    pool = Loop(Setup("files", {"directory": str(path)}, "db"))
    while killed_at(step, pool, lambda pool: pool.init()):
        pool.init()
        assert not pool.check() and os.listdir(path) == [".volctl"]
        assert json.loads((path / ".volctl").read_text()) == {"volctl": 1, "database": "db"}
        (path / ".volctl").unlink()
        path.rmdir()
        step += 1
    assert step > 5


def test_a_symlink_is_never_followed(tmp_path: Path) -> None:
    pool, volume = make(tmp_path / "pool"), new()
    (tmp_path / "precious").write_text("not ours")
    pool.path(volume).symlink_to(tmp_path / "precious")
    acts: list[Callable[[], object]] = [
        lambda: pool.extend(volume, MiB),
        lambda: pool.clone(volume, new(), MiB, quiet),
        lambda: pool.inspect(volume),
    ]
    for act in acts:
        with pytest.raises(BackendError, match="not a regular file"):
            act()
    pool.create(volume, MiB)
    assert (tmp_path / "precious").read_text() == "not ours" and pool.path(volume).is_file()


def test_one_directory_is_one_pool(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pools = [Loop(Setup(name, {"directory": str(tmp_path / name)}, "db")) for name in ("real", "link")]
    assert len({pool.pool() for pool in pools}) == len({pool.free_space_key() for pool in pools}) == 1


def test_mode_is_exact_and_kept_by_revert(tmp_path: Path) -> None:
    pool, volume, snapshot = make(tmp_path, mode="0666"), new(), new("snap")
    pool.create(volume, MiB)
    assert pool.path(volume).stat().st_mode & 0o777 == 0o666
    pool.path(volume).chmod(0o640)
    pool.snapshot(volume, snapshot)
    pool.revert(volume, snapshot, MiB)
    assert pool.path(volume).stat().st_mode & 0o777 == 0o640


@needs_root
def test_owner_of_new_files(tmp_path: Path) -> None:
    nobody, volume = pwd.getpwnam("nobody"), new()
    for options, owner in (({"owner": "nobody"}, None), ({}, (nobody.pw_uid, nobody.pw_gid))):
        pool = Loop(Setup("files", {"directory": str(tmp_path), **options}, "db", owner=owner))
        pool.init()
        pool.create(volume, MiB)
        assert pool.path(volume).stat().st_uid == nobody.pw_uid


def test_an_image_on_a_file_system_without_reflinks(tmp_path: Path) -> None:
    pool = make(tmp_path)
    if pool.capabilities.constant_time_clone:
        pytest.skip("needs a file system without reflinks")
    with open(__file__, "rb") as image:
        assert pool.clone_image(image.fileno(), new(), MiB) is False
    assert pool.objects() == []


@needs_root
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("volctl.files.sparse.ALLOCATE", MiB)  # so that the disk is full half-way
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", str(tmp_path)], check=True)
    try:
        pool, volume = make(tmp_path, preallocate="falloc"), new()
        pool.create(volume, SIZE)
        with pytest.raises(NoSpaceError, match=volume.name):
            pool.extend(volume, 4 * SIZE)
        assert pool.path(volume).stat().st_size == SIZE
        with pytest.raises(NoSpaceError):
            pool.clone(volume, new(), 4 * SIZE, quiet)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(AccessError, match="Read-only"):
            pool.delete(volume)
        assert "not writable" in pool.check()[0].message
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@needs_root
def test_a_loop_device_and_its_mount_are_holders(tmp_path: Path) -> None:
    pool, volume, mount = make(tmp_path / "pool"), new(), tmp_path / "a mount"
    pool.create(volume, 32 * MiB)
    mount.mkdir()
    attach = ["losetup", "-f", "--show", str(pool.path(volume))]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        assert pool.holders(volume) == [device]
        subprocess.run(["mkfs.ext4", "-q", device], check=True)
        subprocess.run(["mount", device, str(mount)], check=True)
        assert pool.holders(volume) == [f"{device}, mounted on {mount}"]
        subprocess.run(["umount", str(mount)], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
    assert pool.holders(volume) == []


@pytest.mark.skipif(not shutil.which("qemu-io"), reason="needs qemu-io (package qemu-utils)")
def test_qemu_locks_are_seen(tmp_path: Path) -> None:
    pool, volume = make(tmp_path), new()
    pool.create(volume, MiB)
    code = (
        "import subprocess, sys\n"
        "q = subprocess.Popen(['qemu-io', '-f', 'raw', sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "q.stdin.write(b'length\\n'); q.stdin.flush(); q.stdout.readline()"
    )
    with stranger(code, str(pool.path(volume))):
        assert any("qemu-io (pid " in holder for holder in pool.holders(volume))


def test_a_lock_without_a_visible_process_is_told(tmp_path: Path) -> None:
    from volctl.files.holders import _locked

    path = tmp_path / "file"
    path.touch()
    with path.open("r+b") as ours, path.open("r+b") as theirs:
        assert not _locked(ours.fileno())
        fcntl.fcntl(theirs, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0))
        assert _locked(ours.fileno())


def test_the_capabilities_table_is_passed_on(tmp_path: Path) -> None:
    assert make(tmp_path, capabilities={"ssd": True}).capabilities.extra == {"ssd": True}
