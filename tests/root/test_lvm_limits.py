"""Where room ends or a disk fails: the right exit code in bounded time, everything undone, others untouched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.warm import Warm, digest, foreign, image, new_volume, node, read_directly, reload, sectors
from volctl.model import MiB

GROUP = "limit-group"
SKIPPED = 2048
BOUND = 45.0  # seconds of a command that fails: an emulated processor under load, and yet less than a pool's 60


@pytest.fixture
def group(disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], GROUP):
        yield GROUP


def free_extents(group: str) -> int:
    return int(words("vgs", "--noheadings", "-o", "vg_free_count", group)[0])


def fails(warm: Warm, status: int, *argv: str | Path) -> tuple[str, str]:
    """Run it; what it says and the fault that the row of `v` keeps."""
    began = time.monotonic()
    done = warm(*argv, status=status)
    assert time.monotonic() - began < BOUND
    shown = warm.show("v")
    assert shown["status"] == "error" and warm.unfinished() == []
    return done.err, f"{shown['fault']['code']}: {shown['fault']['message']}"


@pytest.mark.parametrize("mirrors", [0, 1])
def test_one_extent_too_few_just_enough_and_one_more(warm: Warm, group: str, tmp_path: Path, mirrors: int) -> None:
    warm.configure(group, provisioning="thick", mirrors=mirrors)
    source, takes = image(tmp_path / "image", 8), 9 if mirrors else 8  # each leg has an extent of metadata
    home = foreign(group)
    before = digest(home)
    for disk in words("pvs", "--noheadings", "-o", "pv_name", "-S", f"vg_name={group}"):
        free = int(words("pvs", "--noheadings", "--units", "m", "--nosuffix", "-o", "pv_free", disk)[0].split(".")[0])
        left = takes - 1 if mirrors or disk.endswith("b") else 0
        run("lvcreate", "-y", "-an", "-Wn", "-Zn", "-l", f"{free - left}", "-n", f"filler-{disk[5:]}", group, disk)
    fillers = [name for name in lvs(group) if name.startswith("filler")]
    told = fails(warm, 6, "create", "v", "--size", "8M", "--from-image", source)
    assert "no_backend" in told[1] and "CapacityFilter" in told[0]
    assert set(lvs(group)) == {*fillers, "home"}
    warm("delete", "v", "-y")
    for spare in (0, 1):
        for filler in fillers if mirrors else fillers[:1]:
            run("lvreduce", "-y", "-f", "-l", "-1", f"{group}/{filler}")
        warm("create", f"v{spare}", "--size", "8M", "--from-image", source)
        assert free_extents(group) == spare * (1 + mirrors)
        device = Path(warm("attach", f"v{spare}", "-q").out.strip())
        assert digest(device) == digest(source)
        warm("detach", f"v{spare}")
        warm("delete", f"v{spare}", "-y")
    assert set(lvs(group)) == {*fillers, "home"} and digest(home) == before


def test_a_pool_that_fills_while_an_image_is_copied(warm: Warm, group: str, tmp_path: Path) -> None:
    warm.configure(group, provisioning="thin", pool_size="96M")
    source = image(tmp_path / "image", 48)
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    kept = Path(warm("attach", "kept", "-q").out.strip())
    run("lvcreate", "-y", "-V", "128m", "--thinpool", "volctl", "-n", "greedy", group)
    began = time.monotonic()
    copying = warm.start("create", "v", "--size", "64M", "--from-image", source)
    volume = new_volume(group, {kept.name})
    run("dmsetup", "suspend", volume)
    run("dd", "if=/dev/urandom", f"of=/dev/{group}/greedy", "bs=1M", "oflag=direct", check=False)
    run("dmsetup", "resume", volume)
    done = warm.join(copying)
    assert (done.status, time.monotonic() - began < BOUND) == (6, True), done.err
    assert warm.show("v")["fault"]["code"] == "no_space" and warm.unfinished() == []
    assert set(lvs(group)) == {"volctl", "greedy", kept.name}
    assert read_directly(kept) == digest(tmp_path / "small")
    run("lvremove", "-y", f"{group}/greedy")
    warm("delete", "v", "-y")
    warm("create", "v", "--size", "64M", "--from-image", source)
    assert digest(Path(warm("attach", "v", "-q").out.strip()), 48 * MiB) == digest(source)


@pytest.fixture
def frail(disks: list[Path]) -> Iterator[Path]:
    """A disk that can be made to fail. It begins at 1 MiB of the real one, where LVM does not see its label twice."""
    run("blkdiscard", "-f", disks[0])
    with node("frail", whole(disks[0])) as path:
        try:
            yield path
        finally:
            reload("frail", whole(disks[0]))
            run("vgremove", "-ff", "-y", GROUP, check=False)


def whole(disk: Path) -> str:
    return f"0 {sectors(disk) - SKIPPED} linear {disk} {SKIPPED}"


def broken_from(disk: Path, mebibytes: int) -> str:
    start, end = mebibytes * 2048, sectors(disk) - SKIPPED
    return f"0 {start} linear {disk} {SKIPPED}\n{start} {end - start} error"


def test_a_part_of_a_disk_fails_while_it_is_written(warm: Warm, frail: Path, disks: list[Path], tmp_path: Path) -> None:
    run("vgcreate", "-q", "-s", "1m", GROUP, frail)
    home = foreign(GROUP)
    warm.configure(GROUP, provisioning="thick", clear="none")
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    kept, before = Path(warm("attach", "kept", "-q").out.strip()), digest(home)
    reload("frail", broken_from(disks[0], 60))
    message, fault = fails(warm, 8, "create", "v", "--from-image", image(tmp_path / "image", 96))
    assert "nput/output error" in message and fault.startswith("backend:")
    assert set(lvs(GROUP)) <= {"volctl", "home", kept.name}
    assert (read_directly(kept), read_directly(home)) == (digest(tmp_path / "small"), before)
    reload("frail", whole(disks[0]))
    warm("delete", "v", "-y")
    warm("create", "v", "--from-image", tmp_path / "image")
    assert digest(Path(warm("attach", "v", "-q").out.strip())) == digest(tmp_path / "image")


@pytest.mark.parametrize("clear", ["zero", "none"])
def test_a_disk_is_lost_while_it_is_written_and_comes_back(
    warm: Warm, frail: Path, disks: list[Path], tmp_path: Path, clear: str
) -> None:
    """What cannot be undone on a dead disk is kept as stuck, and undone by the next command once it is back."""
    run("vgcreate", "-q", "-s", "1m", GROUP, disks[1], frail)
    home = foreign(GROUP, disks[1])
    run("pvchange", "--addtag", "used", frail)
    warm.configure(GROUP, provisioning="thick", clear=clear, pv_tags=["used"])
    source, before = image(tmp_path / "image", 128), digest(home)
    began = time.monotonic()
    copying = warm.start("create", "v", "--size", "500M", "--from-image", source)
    new_volume(GROUP, set())
    run("dmsetup", "wipe_table", "--force", "--noflush", "frail")
    done = warm.join(copying)
    assert (done.status, time.monotonic() - began < BOUND) == (8, True), done.err
    assert read_directly(home) == before
    assert warm.show("v")["status"] == "error"
    reload("frail", whole(disks[0]))
    for flow in warm.unfinished():
        warm("flow", "retry", flow)
    assert warm.unfinished() == [] and lvs(GROUP) == ["home"]
    assert warm.show("v")["fault"]["code"] == "backend"
    warm("create", "w", "--size", "130M", "--from-image", source)
    assert digest(Path(warm("attach", "w", "-q").out.strip()), 128 * MiB) == digest(source)
