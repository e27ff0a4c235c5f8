"""Tests of the real device-mapper and LVM: collected only in the guest of `scripts/vm`, all in one boot.

    scripts/vm --disk 1G --disk 1G --disk 1G:4096 -- python3 -m pytest tests/root/test_lvm.py

tests/system/test_vm.py does that, a few files a boot: those that kill share one world, which keeps its disks.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.crash import Zygote
from tests.root.lvm_crash import Rig, furnished
from tests.root.warm import Warm, zygote

collect_ignore_glob = [] if os.environ.get("VOLCTL_IN_VM") == "1" else ["test_*.py"]


@pytest.fixture(scope="session")
def disks() -> list[Path]:
    """The blank disks that `scripts/vm` was given, in order; its own have serials."""
    blocks = sorted(Path("/sys/block").glob("vd*"), key=lambda block: (len(block.name), block.name))
    return [Path("/dev", block.name) for block in blocks if not (block / "serial").read_text().strip()]


@pytest.fixture(scope="session", autouse=True)
def no_archive() -> None:
    """LVM keeps the metadata of before each change for a month, and reads through them at each: thousands in a boot."""
    with Path("/etc/lvm/lvmlocal.conf").open("a") as file:
        file.write("backup { archive = 0 }\n")


@pytest.fixture
def blank_disks(disks: list[Path]) -> list[Path]:
    """The same, without what another test left on them."""
    for disk in disks:
        subprocess.run(["blkdiscard", "-f", disk], check=True)
    subprocess.run(["udevadm", "settle"], check=True)
    return disks


@pytest.fixture(scope="session")
def rig(disks: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The world to crash in, of all files that do: to make it takes half a minute here."""
    with furnished(tmp_path_factory.mktemp("kill"), disks) as made:
        yield made


@pytest.fixture(scope="session")
def warm_process() -> Iterator[Zygote]:
    made = zygote()
    yield made
    made.close()


@pytest.fixture
def warm(warm_process: Zygote, tmp_path: Path) -> Warm:
    """volctl in a state directory of its own, not configured yet."""
    return Warm(warm_process, tmp_path)
