"""Who has an LV open without having told volctl."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.root.lvm_rig import lvs, run, volume_group
from tests.root.warm import Warm, digest, node, sectors
from volctl.model import MiB

GROUP = "held-group"


@contextmanager
def opened_by_qemu(device: Path) -> Iterator[str]:
    words = ["qemu-io", "-f", "raw", str(device)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin and child.stdout
        child.stdin.write("length\n")
        child.stdin.flush()
        assert "MiB" in child.stdout.readline()
        yield f"qemu-io (pid {child.pid})"
        child.stdin.close()


@contextmanager
def mounted(device: Path) -> Iterator[str]:
    run("mkfs.ext4", "-q", device)
    run("mount", "-o", "ro", device, "/mnt")
    try:
        yield "mounted on /mnt"
    finally:
        run("umount", "/mnt")


@contextmanager
def mapped(device: Path) -> Iterator[str]:
    with node("on-top", f"0 {sectors(device)} linear {device} 0"):
        yield "(on-top)"


@contextmanager
def looped(device: Path) -> Iterator[str]:
    loop = run("losetup", "-f", "--show", device).strip()
    try:
        yield loop
    finally:
        run("losetup", "-d", loop)


HOLDERS: tuple[Callable[[Path], AbstractContextManager[str]], ...] = (opened_by_qemu, mounted, mapped, looped)


@pytest.fixture(params=["thin", "thick"])
def held(request: pytest.FixtureRequest, warm: Warm, disks: list[Path]) -> Iterator[Warm]:
    with volume_group(disks[:1], GROUP):
        warm.configure(GROUP, provisioning=request.param, pool_size="200M")
        yield warm


def test_strangers_are_found_and_named(held: Warm) -> None:
    """The volume was activated by hand, not by `attach`."""
    held("create", "v", "--size", "16M")
    held("snapshot", "create", "v", "s")
    held("create", "w", "--size", "16M")
    for name in ("v", "w"):
        device = Path("/dev", GROUP, held.lv(name))
        run("lvchange", "-y", "-ay", "-K", f"{GROUP}/{device.name}")
        for hold in HOLDERS:
            with hold(device) as holder:
                before = digest(device)
                for command in refused(name):
                    said = held(*command, status=5).err
                    assert holder in said, (hold.__name__, command, said)
                shown = held.show(name)
                assert (shown["status"], shown["size"], digest(device)) == ("available", 16 * MiB, before)
    assert held.unfinished() == []
    held("revert", "v", "s", "-y")
    held("extend", "w", "24M")
    held("delete", "v", "w", "--cascade", "-y")
    assert set(lvs(GROUP)) <= {"volctl"}


def refused(name: str) -> list[list[str]]:
    """`w` has no snapshot, whose existence would refuse a delete first."""
    verbs = [["extend", name, "24M"]]
    return [*verbs, ["revert", "v", "s", "-y"]] if name == "v" else [*verbs, ["delete", "w", "-y"]]
