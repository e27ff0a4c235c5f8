"""LVM's corners on real groups: room to the extent, full pools, broken and foreign groups, what is left behind."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backends.lvm import Lvm
from tests.backends.conformance import new, quiet, stranger
from tests.root.lvm_rig import active, lvs, make, places, run, volume_group, words
from volctl import command
from volctl.backend import Target
from volctl.errors import BackendError, ConflictError, InUseError, NoSpaceError
from volctl.images.convert import copy_raw
from volctl.model import MiB, Object

DATABASE = str(uuid.uuid4())
FORK = multiprocessing.get_context("fork")
SECRET = b"an earlier owner's secret " * 40000


@pytest.fixture
def group(disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], "corner-case"):
        yield "corner-case"


def ready(group: str, **options: object) -> Lvm:
    pool = make(group, DATABASE, **options)
    assert pool.init() and not [problem for problem in pool.check() if problem.fatal]
    return pool


def write(pool: Lvm, volume: Object, data: bytes, offset: int = 0) -> None:
    with active(pool, volume) as path, path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read(pool: Lvm, target: Object) -> bytes:
    with pool.reading(target) as where:
        return where.path.read_bytes()


def free_extents(group: str) -> int:
    return int(words("vgs", "--noheadings", "-o", "vg_free_count", group)[0])


def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(command, "on_run", lines.append)
    return lines


def test_thick_room_to_the_extent(group: str) -> None:
    pool = ready(group, provisioning="thick")
    free = pool.stats().free
    assert free == free_extents(group) * MiB
    for size in (free + MiB, 2 * free):
        with pytest.raises(NoSpaceError):
            pool.create(new(), int(size))
        assert pool.objects() == []
    volume = new()
    pool.create(volume, int(free))
    assert free_extents(group) == 0 and pool.stats().free == 0
    with pytest.raises(NoSpaceError):
        pool.extend(volume, int(free) + MiB)
    assert pool.inspect(volume).size == free  # type: ignore[union-attr]
    pool.delete(volume)
    assert pool.stats().free == free


def test_mirrors_lie_on_two_disks_and_their_room_is_true(group: str, disks: list[Path]) -> None:
    pool, volume = ready(group, provisioning="thick", mirrors=1, clear="none"), new()
    free = int(pool.stats().free or 0)
    with pytest.raises(NoSpaceError):
        pool.create(new(), free + MiB)
    pool.create(volume, free)
    legs = words("lvs", "-a", "--noheadings", "-o", "devices", "-S", "lv_name=~rimage", group)
    assert {leg.split("(")[0] for leg in legs} == {str(disk) for disk in disks[:2]}


def test_only_disks_with_the_tag_are_used(group: str, disks: list[Path]) -> None:
    pool = make(group, DATABASE, provisioning="thick", pv_tags=["fast"])
    with pytest.raises(BackendError, match="has one of the tags fast"):
        pool.init()
    run("pvchange", "--addtag", "fast", disks[1])
    pool.init()
    volume = new()
    pool.create(volume, 4 * MiB)
    pool.extend(volume, 8 * MiB)
    snapshot = new("snap")
    pool.snapshot(volume, snapshot)
    used = words("lvs", "-a", "--noheadings", "-o", "devices", group)
    assert used and all(where.startswith(str(disks[1])) for where in used if "(" in where and where.startswith("/"))
    assert 0 < (pool.stats().free or 0) < free_extents(group) * MiB


@pytest.mark.parametrize("clear", ["zero", "none"])
def test_a_thick_volume_never_shows_what_its_extents_held(group: str, clear: str) -> None:
    pool, old = ready(group, provisioning="thick", clear=clear), new()
    size = 16 * MiB
    run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-l", str(free_extents(group) - 64), "-n", "filler", group)
    pool.create(old, 64 * MiB)
    write(pool, old, SECRET * 60)
    pool.delete(old)
    blank, source, clone = new(), new(), new()
    pool.create(source, MiB)
    pool.clone(source, clone, size, quiet)
    pool.create(blank, size)
    pool.extend(source, size)
    for volume in (blank, source, clone):
        assert not any(read(pool, volume))


def test_what_is_given_back_holds_nothing(group: str) -> None:
    pool, volume, snapshot = ready(group, provisioning="thick"), new(), new("snap")
    pool.create(volume, 4 * MiB)
    write(pool, volume, SECRET)
    pool.snapshot(volume, snapshot)
    write(pool, volume, b"x" * len(SECRET))  # the secret moves to the snapshot's area
    where = places(group)
    assert len(where) == 2 and any(SECRET[:4096] in content(*place) for place in where)
    pool.delete_snapshot(volume, snapshot)
    pool.delete(volume)
    assert places(group) == []
    assert not any(any(content(*place)) for place in where)


def content(disk: str, start: int, length: int) -> bytes:
    """What is on the disk itself."""
    run("blockdev", "--flushbufs", disk)
    with Path(disk).open("rb") as file:
        file.seek(start)
        return file.read(length)


def test_a_snapshot_whose_area_is_full_can_be_deleted(group: str) -> None:
    pool, volume, snapshot = ready(group, provisioning="thick", snapshot_percentage=10), new(), new("snap")
    pool.create(volume, 32 * MiB)
    pool.snapshot(volume, snapshot)
    write(pool, volume, b"x" * 16 * MiB)
    for use in (
        lambda: read(pool, snapshot),
        lambda: pool.clone(snapshot, new(), 32 * MiB, quiet),
        lambda: pool.revert(volume, snapshot, 32 * MiB),
    ):
        with pytest.raises(BackendError, match=f"{snapshot.name} is lost"):
            use()
    pool.delete_snapshot(volume, snapshot)
    assert read(pool, volume).startswith(b"xxxx")
    assert lvs(group, "lv_active=active") == []


def test_a_full_thin_pool_fails_a_copy_at_once(group: str, tmp_path: Path) -> None:
    pool, kept, volume = ready(group, provisioning="thin", pool_size="64M"), new(), new()
    pool.create(kept, 8 * MiB)
    write(pool, kept, b"kept" * 1000)
    image = tmp_path / "image"
    image.write_bytes(b"i" * 100 * MiB)
    began = time.monotonic()
    with pytest.raises(NoSpaceError), pool.writing(volume, 128 * MiB) as target:
        copy_raw(Target(image, "raw", zeroed=False), target, quiet)
    assert time.monotonic() - began < 45
    assert any("pool" in problem.message for problem in pool.check()) or (pool.stats().data_percent or 0) > 95
    pool.delete(volume)
    assert read(pool, kept).startswith(b"kept" * 1000)
    assert (pool.stats().data_percent or 0) < 50
    pool.create(volume, 8 * MiB)


def test_create_on_thin_takes_at_most_four_calls(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(group, provisioning="thin", pool_size="64M")
    pool, volume, lines = make(group, DATABASE, provisioning="thin"), new(), commands(monkeypatch)
    pool.check()
    pool.stats()
    assert pool.capabilities.thin and pool.capabilities.granule == MiB
    pool.create(volume, 8 * MiB)
    assert pool.inspect(volume).size == 8 * MiB  # type: ignore[union-attr]
    assert [line.split()[1] for line in lines] == ["fullreport", "lvcreate", "fullreport"]


def test_a_foreign_lv_is_never_touched(group: str) -> None:
    pool, ours = ready(group, provisioning="thick"), new()
    names = ["home", ours.name, f"revert-{ours.id}"]
    for name in names:
        run("lvcreate", "-y", "-Wn", "-Zn", "-L", "4m", "-n", name, group)
        run("dd", "if=/etc/machine-id", f"of=/dev/{group}/{name}", "conv=fsync")
    before = [Path("/dev", group, name).read_bytes() for name in names]
    assert pool.objects() == [] and pool.inspect(ours) is None and pool.stats().foreign == 12 * MiB
    for act in (pool.delete, lambda volume: pool.create(volume, MiB), lambda volume: pool.extend(volume, 8 * MiB)):
        with pytest.raises(BackendError, match="not ours"):
            act(ours)
    assert [Path("/dev", group, name).read_bytes() for name in names] == before
    for name in names:
        run("lvchange", "-an", f"{group}/{name}")


def test_init_says_what_it_will_do_and_touches_nothing_of_others(group: str) -> None:
    run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-L", "4m", "-n", "home", group)
    with pytest.raises(ConflictError, match=r"not empty.*home"):
        make(group, DATABASE, provisioning="thin").init()
    with pytest.raises(ConflictError, match="no thin pool"):
        make(group, DATABASE, provisioning="thin", pool="home", pool_size="8M").init()
    auto = make(group, DATABASE, provisioning="auto")
    assert [line.split()[:2] for line in auto.init(dry_run=True)] == [["would", "mark"]]
    small = make(group, DATABASE, provisioning="auto", pool_size="32M")
    assert len(small.init(dry_run=True)) == 3 and lvs(group) == ["home"]
    small.init()
    assert set(lvs(group)) == {"home", "volctl"} and small.capabilities.thin
    seen = words("lvs", "--noheadings", "-o", "lv_size,lv_when_full", "--units", "b", "--nosuffix", f"{group}/volctl")
    assert seen == [str(32 * MiB), "error"]


def test_a_group_that_cannot_be_used_says_why(group: str, disks: list[Path]) -> None:
    pool = ready(group, provisioning="thick")
    lost = words("pvs", "--noheadings", "-o", "pv_uuid", str(disks[1]))[0]
    run("vgexport", group)
    assert "is exported" in pool.check()[0].message
    run("vgimport", group)
    run("blockdev", "--flushbufs", disks[1])
    run("wipefs", "-a", "-f", disks[1])
    assert "lacks some of its disks" in pool.check()[0].message
    run("pvcreate", "-y", "--restorefile", f"/etc/lvm/backup/{group}", "--uuid", lost, disks[1])
    run("vgcfgrestore", "-y", group)
    assert make("no-such-group", DATABASE).check()[0].message == "volume group no-such-group is not there"
    assert pool.check() == []


def test_a_suspended_lv_is_resumed_to_be_deleted(group: str) -> None:
    pool, volume = ready(group, provisioning="thick"), new()
    pool.create(volume, 4 * MiB)
    run("lvchange", "-ay", "-K", f"{group}/{volume.name}")
    run("dmsetup", "suspend", f"/dev/{group}/{volume.name}")
    pool.delete(volume)
    assert pool.objects() == [] and lvs(group) == []


@pytest.mark.parametrize("provisioning", ["thin", "thick"])
def test_an_attached_lv_that_a_killed_lvm_left_suspended_goes_on(group: str, provisioning: str) -> None:
    """Whatever comes next: the work is completed, or what was made of it is taken back."""
    pool, volume, snapshot, copy = ready(group, provisioning=provisioning), new(), new("snap"), new()
    pool.create(volume, 4 * MiB)
    device = pool.attach(volume, read_only=False)
    again: list[Callable[[], None]] = [
        lambda: pool.extend(volume, 8 * MiB),
        lambda: pool.extend(volume, 8 * MiB),
        lambda: pool.delete_snapshot(volume, snapshot),
        lambda: pool.delete(copy),
    ]
    for act in again:
        run("dmsetup", "suspend", device)
        act()
        found = pool.attached(volume)
        assert found and not found.suspended
    grown = pool.inspect(volume)
    assert grown and grown.size == 8 * MiB
    pool.detach(volume)


def test_a_signal_while_an_lv_is_put_to_rest_is_heard(group: str) -> None:
    """Also when something else had gone wrong before: the command is to end, and not to try again."""
    pool, volume = ready(group), new()
    pool.create(volume, 4 * MiB)
    code = f"""
import os, signal, subprocess, threading
from volctl import interrupt
from volctl.errors import Cancelled, NoSpaceError
from volctl.lvm.group import Session
interrupt.install()
session = Session({group!r}, "b", {DATABASE!r})
try:
    with session.opened({volume.name!r}, os.O_RDWR, session.see()) as fd:
        held = subprocess.Popen(["sleep", "60"], stdin=os.open("/dev/{group}/{volume.name}", os.O_RDONLY))
        threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        raise NoSpaceError("the pool is full")
except Cancelled as error:
    print(type(error.__context__).__name__)
finally:
    held.kill()
"""
    done = subprocess.run(["python3", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "NoSpaceError\n", done.stderr
    quiet_again = time.monotonic() + 10
    while pool.holders(volume) and time.monotonic() < quiet_again:
        time.sleep(0.1)
    pool.delete(volume)


def test_the_lock_of_a_group_outlives_a_killed_command(group: str) -> None:
    from volctl.lvm import locking

    code = (
        "import volctl.command as c; from volctl.lvm.locking import locked\n"
        f"with locked('{group}') as fd:\n"
        "    c.run('sh', '-c', 'echo began; exec sleep 3', pass_fds=(fd,), keep_locks=True,"
        " on_output=lambda piece: print(piece, end='', flush=True))"
    )
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "began\n"
        child.kill()
    began = time.monotonic()
    with locking.locked(group):
        pass
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("provisioning", ["thin", "thick"])
def test_attach_and_detach(group: str, provisioning: str) -> None:
    pool = ready(group, provisioning=provisioning, owner="nobody", mode="0640")
    volume, snapshot = new(), new("snap")
    pool.create(volume, 4 * MiB)
    for _again in range(2):
        assert pool.attach(volume, read_only=True) == str(pool.path(volume))
        found = pool.attached(volume)
        assert found and found.read_only and found.device == str(pool.path(volume))
    assert pool.attach(volume, read_only=False) == str(pool.path(volume))
    assert not pool.attached(volume).read_only  # type: ignore[union-attr]
    assert run("stat", "-L", "-c", "%U %a", pool.path(volume)).split() == ["nobody", "640"]
    pool.snapshot(volume, snapshot)
    pool.extend(volume, 8 * MiB)
    read(pool, snapshot)
    assert pool.attached(volume) and run("blockdev", "--getsize64", pool.path(volume)).strip() == str(8 * MiB)
    with stranger("import sys; f = open(sys.argv[1])", str(pool.path(volume))) as pid:
        with pytest.raises(InUseError, match=f"pid {pid}"):
            pool.detach(volume)
        assert pool.attached(volume)
        if provisioning == "thick":
            with pytest.raises(InUseError, match=f"pid {pid}"):
                pool.extend(volume, 12 * MiB)
            assert pool.attached(volume)
    for _again in range(2):
        pool.detach(volume)
        assert pool.attached(volume) is None
    assert lvs(group, "lv_active=active && lv_name!=volctl") == []


def test_an_origin_is_active_again_when_its_extension_failed(group: str) -> None:
    pool, volume, snapshot = ready(group, provisioning="thick"), new(), new("snap")
    pool.create(volume, 4 * MiB)
    pool.snapshot(volume, snapshot)
    pool.attach(volume, read_only=False)
    with pytest.raises(NoSpaceError):
        pool.extend(volume, 10000 * MiB)
    assert pool.attached(volume) and pool.inspect(volume).size == 4 * MiB  # type: ignore[union-attr]
    pool.detach(volume)


def create_one(group: str, volume: Object) -> None:
    make(group, DATABASE, provisioning="thin").create(volume, 8 * MiB)


def delete_one(group: str, volume: Object) -> None:
    make(group, DATABASE, provisioning="thin").delete(volume)


def test_many_commands_share_a_group(group: str) -> None:
    """Each in a process of its own, with a backend of its own."""
    ready(group, provisioning="thin", pool_size="128M")
    volumes = [new() for _ in range(16)]
    for act in (create_one, delete_one):
        children = [FORK.Process(target=act, args=(group, volume)) for volume in volumes]
        began = time.monotonic()
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0] * 16
        print(f"{act.__name__} {time.monotonic() - began:.1f} s")
    assert lvs(group) == ["volctl"]
