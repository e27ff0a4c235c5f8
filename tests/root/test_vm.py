"""What the other tests here take for granted of the guest."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

TARGETS = ("linear", "striped", "error", "thin", "thin-pool", "snapshot", "raid", "flakey")


def run(*argv: str | Path) -> str:
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("target", TARGETS)
def test_device_mapper_has_the_target(target: str) -> None:
    subprocess.run(["modprobe", "-q", f"dm-{target}"], check=False)
    assert any(line.startswith(f"{target} ") for line in run("dmsetup", "targets").splitlines())


def test_disks_are_blank_and_have_their_sector_sizes(blank_disks: list[Path]) -> None:
    sectors = [int(run("blockdev", "--getss", disk)) for disk in blank_disks]
    assert 512 in sectors
    assert 4096 in sectors
    assert [run("blkid", "-p", "-o", "value", disk) for disk in blank_disks if holds_data(disk)] == []


def holds_data(disk: Path) -> bool:
    with disk.open("rb") as file:
        return any(file.read(1 << 20))


def test_an_lv_has_its_node_when_lvcreate_returns(blank_disks: list[Path]) -> None:
    run("vgcreate", "-q", "rig", blank_disks[0])
    try:
        run("lvcreate", "-qq", "-y", "-L", "8M", "-n", "one-lv", "rig")
        assert os.stat("/dev/rig/one-lv").st_rdev == os.stat("/dev/mapper/rig-one--lv").st_rdev
        run("lvcreate", "-qq", "-y", "--type", "thin-pool", "-L", "32M", "-n", "pool", "rig")
        run("lvcreate", "-qq", "-y", "-V", "64M", "--thinpool", "pool", "-n", "thin", "rig")
        assert run("lsblk", "-nbdo", "SIZE", "/dev/rig/thin").strip() == str(64 << 20)
    finally:
        run("vgremove", "-qq", "-ff", "-y", "rig")


def test_a_reflink_file_system_can_be_mounted(tmp_path: Path) -> None:
    disk, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    run("truncate", "-s", "300M", disk)
    run("mkfs.xfs", "-q", disk)
    run("mount", "-o", "loop", disk, mount)
    try:
        (mount / "a").write_bytes(b"a" * 8192)
        run("cp", "--reflink=always", mount / "a", mount / "b")
    finally:
        run("umount", mount)


def test_the_guest_is_always_the_same_host() -> None:
    assert socket.gethostname() == "volctl-vm"
    assert Path("/etc/machine-id").read_text() == "766f6c63746c766d766f6c63746c766d\n"
    assert run("findmnt", "-no", "FSTYPE", "/var/lib/volctl").strip() == "ext4"
