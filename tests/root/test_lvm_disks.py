"""Disks that fail: the right exit code in bounded time, everything undone or kept to be undone, others untouched."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root.lvm_rig import lvs, places, run
from tests.root.warm import BOUND, Warm, digest, fails, foreign, image, new_volume, node, read_directly, reload, sectors
from volctl.model import MiB

GROUP = "limit-group"
SKIPPED = 2048


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


def broken(disk: Path, start: int, end: int) -> str:
    """A table by which the bytes from `start` to `end` cannot be read or written."""
    first, last, all_ = start // 512, end // 512, sectors(disk) - SKIPPED
    lines = [f"0 {first} linear {disk} {SKIPPED}", f"{first} {last - first} error"]
    return "\n".join([*lines, *([f"{last} {all_ - last} linear {disk} {SKIPPED + last}"] if last < all_ else [])])


def flakey(disk: Path) -> str:
    """Up for a second, then for three nothing can be written, again and again."""
    return f"0 {sectors(disk) - SKIPPED} flakey {disk} {SKIPPED} 1 3 1 error_writes"


def test_a_part_of_a_disk_fails_while_it_is_written(warm: Warm, frail: Path, disks: list[Path], tmp_path: Path) -> None:
    run("vgcreate", "-q", "-s", "1m", GROUP, frail)
    home = foreign(GROUP)
    warm.configure(GROUP, provisioning="thick", clear="none")
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    kept, before = Path(warm("attach", "kept", "-q").out.strip()), digest(home)
    reload("frail", broken(disks[0], 60 * MiB, (sectors(disks[0]) - SKIPPED) * 512))
    message, fault = fails(warm, 8, "create", "v", "--from-image", image(tmp_path / "image", 96))
    assert "nput/output error" in message and fault.startswith("backend:")
    assert set(lvs(GROUP)) <= {"volctl", "home", kept.name}
    assert (read_directly(kept), read_directly(home)) == (digest(tmp_path / "small"), before)
    reload("frail", whole(disks[0]))
    warm("delete", "v", "-y")
    warm("create", "v", "--from-image", tmp_path / "image")
    assert digest(Path(warm("attach", "v", "-q").out.strip())) == digest(tmp_path / "image")


@pytest.mark.parametrize(("clear", "how"), [("zero", "lost"), ("none", "lost"), ("none", "flakey")])
def test_a_disk_is_lost_while_it_is_written_and_comes_back(
    warm: Warm, frail: Path, disks: list[Path], tmp_path: Path, clear: str, how: str
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
    if how == "lost":
        run("dmsetup", "wipe_table", "--force", "--noflush", "frail")
    else:
        reload("frail", flakey(disks[0]))
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


def test_a_part_of_a_thin_pool_fails_while_it_is_written(
    warm: Warm, frail: Path, disks: list[Path], tmp_path: Path
) -> None:
    run("vgcreate", "-q", "-s", "1m", GROUP, frail)
    home = foreign(GROUP)
    warm.configure(GROUP, provisioning="thin", pool_size="256M")
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    kept, before = Path(warm("attach", "kept", "-q").out.strip()), digest(home)
    ((_, start, length),) = places(f"{GROUP}/volctl_tdata")
    reload("frail", broken(disks[0], start + 32 * MiB, start + length))
    message, fault = fails(warm, 8, "create", "v", "--from-image", image(tmp_path / "image", 96))
    assert "nput/output error" in message and fault.startswith("backend:")
    assert set(lvs(GROUP)) == {"volctl", "home", kept.name}
    assert (read_directly(kept), read_directly(home)) == (digest(tmp_path / "small"), before)
    reload("frail", whole(disks[0]))
    warm("delete", "v", "-y")
    warm("create", "v", "--from-image", tmp_path / "image")
    assert digest(Path(warm("attach", "v", "-q").out.strip())) == digest(tmp_path / "image")


def test_a_thin_pool_whose_metadata_fail_is_a_failed_backend(
    warm: Warm, frail: Path, disks: list[Path], tmp_path: Path
) -> None:
    run("vgcreate", "-q", "-s", "1m", GROUP, frail)
    home = foreign(GROUP)
    warm.configure(GROUP, provisioning="thin", pool_size="256M")
    warm("create", "kept", "--from-image", image(tmp_path / "small", 4))
    source, before = image(tmp_path / "image", 96), digest(home)
    ((_, start, length),) = places(f"{GROUP}/volctl_tmeta")
    began = time.monotonic()
    copying = warm.start("create", "v", "--from-image", source)
    new_volume(GROUP, set())
    reload("frail", broken(disks[0], start, start + length))
    done = warm.join(copying)
    assert (done.status, time.monotonic() - began < BOUND) == (8, True), done.err
    assert f"thin pool {GROUP}/volctl is failed" in done.err
    assert f"thin pool {GROUP}/volctl: failed" in warm("create", "w", "--size", "8M", status=6).err  # put nowhere
    assert read_directly(home) == before
    reload("frail", whole(disks[0]))
    run("lvchange", "-y", "-an", f"{GROUP}/volctl")
    for flow in warm.unfinished():
        warm("flow", "retry", flow)
    assert warm.unfinished() == []
    shown = warm.show("v")
    assert (shown["status"], shown["fault"]["code"]) == ("error", "backend")
    kept = warm.lv("kept")
    assert kept in lvs(GROUP) and not any(warm.lv("v") == name for name in lvs(GROUP))
    assert digest(Path(warm("attach", "kept", "-q").out.strip())) == digest(tmp_path / "small")
