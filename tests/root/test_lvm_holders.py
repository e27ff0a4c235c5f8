"""Who has an LV open without having told volctl, and what a reboot leaves of attachments."""

from __future__ import annotations

import json
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
    """The volumes were activated by hand, not by `attach`; a snapshot alone would refuse the delete of one."""
    held("create", "v", "--size", "16M")
    held("snapshot", "create", "v", "s")
    held("create", "w", "--size", "16M")
    refused = {"v": ["revert v s -y"], "w": ["extend w 24M", "delete w -y"]}
    for name, commands in refused.items():
        device = Path("/dev", GROUP, held.lv(name))
        run("lvchange", "-y", "-ay", "-K", f"{GROUP}/{device.name}")
        for hold in HOLDERS:
            with hold(device) as holder:
                before = digest(device)
                for command in commands:
                    said = held(*command.split(), status=5).err
                    assert holder in said, (hold.__name__, command, said)
                assert digest(device) == before
    found = held("list", "--json").json()
    assert [(volume["status"], volume["size"]) for volume in found] == [("available", 16 * MiB)] * 2
    assert held.unfinished() == []
    held("revert", "v", "s", "-y")
    held("extend", "w", "24M")
    held("delete", "v", "w", "--cascade", "-y")
    assert set(lvs(GROUP)) <= {"volctl"}


def test_what_was_attached_comes_back_after_a_reboot(held: Warm) -> None:
    """A reboot: no LV is active, and those that LVM activates by itself are not ours."""
    for name in ("a", "b", "c"):
        held("create", name, "--size", "8M")
    devices = {name: Path(held("attach", name, "-q").out.strip()) for name in ("a", "b")}
    devices["a"].write_bytes(b"written")
    run("blockdev", "--flushbufs", devices["a"])
    run("vgchange", "-q", "-an", GROUP)
    run("vgchange", "-q", "-aay", GROUP)
    assert lvs(GROUP, "lv_name=~^volume && lv_active=active") == []
    assert {volume["name"]: volume["status"] for volume in held("list", "--json").json()} == dict.fromkeys(
        "abc", "available"
    )
    again = json.loads(held("attach", "--all", "--json").out)
    assert {volume["name"]: volume["attachments"][0]["device"] for volume in again} == {
        name: str(device) for name, device in devices.items()
    }
    assert devices["a"].open("rb").read(7) == b"written"
    assert {volume["name"]: volume["status"] for volume in held("list", "--json").json()} == {
        "a": "in-use",
        "b": "in-use",
        "c": "available",
    }
    assert held("attach", "--all").status == 0
    held("detach", "a")
    run("vgchange", "-q", "-an", GROUP)
    assert [volume["name"] for volume in json.loads(held("attach", "--all", "--json").out)] == ["b"]
