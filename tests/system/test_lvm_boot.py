"""The main job on LVM: the real image on a thin and on a thick LV, whole after a reboot, and it boots."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.system.test_boot import is_zero, run, same_start
from tests.system.test_vm import raw, vm

SIZE = 2100  # MiB of each volume, a little more than the image's disk
GROUP = 2300


@pytest.mark.vm
def test_the_image_on_lvs_survives_a_reboot_and_boots(debian_image: Path, tmp_path: Path) -> None:
    groups = [raw(tmp_path / kind, GROUP) for kind in ("thin-group", "thick-group")]
    volumes = [raw(tmp_path / kind, SIZE) for kind in ("thin", "thick")]
    kept = ["--state", tmp_path / "state", *(word for disk in groups for word in ("--disk", disk))]
    made = vm(*kept, "--in", debian_image, "--", "python3", "-m", "tests.root.on_image", "make")
    assert (made.returncode, made.stdout.count("attached as /dev/vg-")) == (0, 2), made.stdout + made.stderr
    taken = [word for disk in volumes for word in ("--disk", disk)]
    again = vm(*kept, *taken, "--", "python3", "-m", "tests.root.on_image", "again")
    assert again.returncode == 0, again.stdout + again.stderr

    disk = tmp_path / "disk.raw"
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", debian_image, disk)
    for volume in volumes:
        assert same_start(volume, disk)
        assert is_zero(volume, disk.stat().st_size)
    boot = [str(REPO / "scripts/boot"), "--timeout", "600"]
    boots = [subprocess.Popen([*boot, str(volume), "raw"], stdout=subprocess.PIPE) for volume in volumes]
    consoles = [boot.communicate()[0] for boot in boots]
    assert [boot.returncode for boot in boots] == [0, 0], consoles
    assert all(b"volctl-guest: ready" in console for console in consoles)
