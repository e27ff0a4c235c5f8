"""Where room ends: the right exit code in bounded time, everything undone, others untouched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.lvm_rig import lvs, run, volume_group, words
from tests.root.thin_pool import Pool
from tests.root.warm import BOUND, Warm, digest, fails, foreign, image, new_volume, read_directly
from volctl.model import MiB

GROUP = "limit-group"


@pytest.fixture
def group(disks: list[Path]) -> Iterator[str]:
    with volume_group(disks[:2], GROUP):
        yield GROUP


def free_extents(group: str) -> int:
    return int(words("vgs", "--noheadings", "-o", "vg_free_count", group)[0])


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
def tight(warm: Warm, group: str) -> Iterator[Pool]:
    """A thin pool that others made, with the least metadata that LVM gives, and one volume of ours."""
    run("lvcreate", "-y", "--type", "thin-pool", "-L", "128m", "--poolmetadatasize", "2m", "-n", "volctl", group)
    run("lvchange", "-y", "--errorwhenfull", "y", f"{group}/volctl")
    warm.configure(group, provisioning="thin")
    yield Pool(group, "volctl")


def test_a_pool_short_of_metadata_takes_nothing_new(warm: Warm, tight: Pool, tmp_path: Path) -> None:
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    made = tight.fill_metadata(until=95)
    told, fault = fails(warm, 6, "create", "v", "--size", "8M")
    assert "no_backend" in fault and "metadata" in told
    assert digest(Path(warm("attach", "kept", "-q").out.strip())) == digest(tmp_path / "small")
    tight.forget(made)
    warm("create", "w", "--size", "8M")


def test_a_pool_whose_metadata_fill_while_an_image_is_copied(warm: Warm, tight: Pool, tmp_path: Path) -> None:
    """Nothing can be removed from such a pool either, so it is kept as stuck until there is room again."""
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    kept, source = Path(warm("attach", "kept", "-q").out.strip()), image(tmp_path / "image", 48)
    copying = warm.start("create", "v", "--size", "64M", "--from-image", source)
    volume = new_volume(tight.group, {kept.name})
    run("dmsetup", "suspend", volume)
    tight.fill_metadata(until=101)
    run("dmsetup", "resume", volume)
    began = time.monotonic()
    done = warm.join(copying)
    assert (done.status, time.monotonic() - began < BOUND) == (6, True), done.err
    assert warm.show("v")["fault"]["code"] == "no_space"
    assert read_directly(kept) == digest(tmp_path / "small")
    run("lvextend", "-y", "--poolmetadatasize", "+4m", f"{tight.group}/volctl")
    for flow in warm.unfinished():
        warm("flow", "retry", flow)
    assert warm.unfinished() == [] and set(lvs(tight.group)) == {"volctl", kept.name}
    warm("create", "w", "--size", "64M", "--from-image", source)
    assert digest(Path(warm("attach", "w", "-q").out.strip()), 48 * MiB) == digest(source)
