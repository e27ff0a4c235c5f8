"""Real reflink file systems on loop devices, and the conformance suite's assertions explained."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.backends.conformance", "tests.backends.attaching")

MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}


@pytest.fixture(scope="module", params=sorted(MAKE))
def reflink_mount(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty xfs or btrfs of 1.5 GiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    base = tmp_path_factory.mktemp(request.param)
    disk, mount = base / "disk", base / "mount"
    mount.mkdir()
    with disk.open("wb") as file:
        file.truncate(3 << 29)
    subprocess.run([*MAKE[request.param], str(disk)], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)
    disk.unlink()
